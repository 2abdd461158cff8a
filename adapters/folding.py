"""Knows how to tell many names of modules or tensors in a few words; never what is the matter with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

_LAYER: Final = re.compile(r"(?P<before>(?:[^.]+\.)*?(?P<list>[^.]+))\.(?P<index>\d{1,9})\.(?P<rest>.+)")
SHOWN: Final = 8  # names of one kind


def folded(names: Iterable[str]) -> str:
    """The names with those of numbered layers together: `layers 0-3: self_attn.q_proj, mlp.up_proj; lm_head`."""
    lists: dict[str, dict[str, set[int]]] = {}
    plain: dict[str, None] = {}
    for name in names:
        if (matched := _LAYER.fullmatch(name)) is None:
            plain[name] = None
        else:
            lists.setdefault(matched["before"], {}).setdefault(matched["rest"], set()).add(int(matched["index"]))
    parts = [part for before, rests in lists.items() for part in _layers(before.rpartition(".")[2], rests)]
    return "; ".join([*parts, *([_listed(list(plain))] if plain else [])])


def _layers(name: str, rests: dict[str, set[int]]) -> list[str]:
    """What the same layers have, once for those layers."""
    by_layers: dict[tuple[int, ...], list[str]] = {}
    for rest, indices in rests.items():
        by_layers.setdefault(tuple(sorted(indices)), []).append(rest)
    return [f"{name} {_ranges(indices)}: {_listed(found)}" for indices, found in by_layers.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Rising numbers with runs drawn together: `0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return _listed([str(first) if first == last else f"{first}-{last}" for first, last in runs])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
