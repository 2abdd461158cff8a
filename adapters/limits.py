"""Knows how large an upload may be. Every reader of untrusted bytes takes its bound from here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.base import BaseSpec

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
ENTRY = 256  # bytes of a tensor's entry in a header besides its module's name


@dataclass(frozen=True)
class Limits:
    """Bytes unless said otherwise. `ratio` bounds what an archive may unpack to, as a multiple of its own size."""

    total: int = 2 * GIB
    config: int = 1 * MIB
    header: int = 1 * MIB
    tensors: int = 16_384
    rank: int = 256
    ratio: int = 100
    members: int = 10_000
    alpha: float = 1e6
    patterns: int = 4_096
    pattern_length: int = 4_096
    pattern_steps: int = 4_000_000
    saved: int = 64

    def within(self, base: BaseSpec) -> Limits:
        """The same with a header as long as that of any adapter of `base` may be, if these are the usual bounds.

        A bound that somebody chose is left as it is.

        Of a module there are A, B, a magnitude or a bias, and the base's own two parameters; of a mixture's experts A
        and B of each, if they lie apart. An entry is a name, three numbers' brackets and four numbers.
        """
        modules = (*base.linears, *base.embeddings, *base.routers)
        experts = sum(2 + 2 * each.experts * len(each.parts) for each in base.experts.values())
        tensors = 5 * len(modules) + len(base.vectors) + experts
        longest = max(map(len, (*modules, *base.vectors, *base.experts)), default=0)
        header = tensors * (longest + ENTRY)
        return replace(self, tensors=self._widened("tensors", tensors), header=self._widened("header", header))

    def _widened(self, bound: str, needed: int) -> int:
        """The bound, as wide as is needed if it is the usual one."""
        chosen: int = getattr(self, bound)
        return max(chosen, needed) if chosen == getattr(DEFAULT, bound) else chosen


DEFAULT = Limits()
