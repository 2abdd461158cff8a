"""Knows by their names which of many files are an adapter's, and what the others may be; never what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from adapters.errors import Finding, Rejected
from adapters.files import ARCHIVES, CONFIG, DROPPED, EXPECTED, PICKLES, WEIGHTS, missing

MLX: Final = ("adapters.safetensors", "adapters.npz")
"""What mlx_lm.lora writes; its checkpoints are `0000100_adapters.safetensors`."""
WHOLE: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHOWN: Final = 20  # names of what was left out

MLX_REMEDY: Final = (
    "it is of MLX's format, whose matrices lie transposed under other names; convert it as docs/adapters.md says "
    f"under MLX and upload the {CONFIG} and {WEIGHTS} that come of it"
)
GGUF_REMEDY: Final = (
    "it is of llama.cpp's format GGUF; upload the folder that convert_lora_to_gguf.py made it from, which holds "
    f"{CONFIG} and {WEIGHTS}"
)


def choose(paths: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The folder, by its parts, that holds both files and lies above all others that do. Raises Rejected."""
    found = set(paths)
    whole = sorted({path[:-1] for path in found if all((*path[:-1], name) in found for name in EXPECTED)})
    if not whole:
        raise Rejected(absent({path[-1] for path in found}))
    top = min(whole, key=len)
    if any(folder[: len(top)] != top for folder in whole):
        named = ", ".join("/".join(folder) for folder in whole[:SHOWN])
        message = f"There are {len(whole)} adapters, and none lies above the others; upload one of {named} alone."
        raise Rejected.because("several-adapters", message, expected="one adapter", found=named)
    return top


def absent(names: Iterable[str]) -> list[Finding]:
    """Why these files are no adapter: what is missing, or what there is in its place."""
    names = set(names)
    instead = next((found for name in sorted(names) if (found := _other_format(name))), None)
    lacking = [name for name in EXPECTED if name not in names]
    if WEIGHTS in names or instead is None:
        return [missing(name) for name in lacking] or [_apart()]
    return [instead, *(missing(name) for name in lacking if name == CONFIG and instead.rule == "pickle")]


def left_out(names: Iterable[str]) -> list[Finding]:
    """A note that names what of an upload is not the adapter's, the model card of PEFT's own aside."""
    others = sorted(name for name in names if name.rpartition("/")[2] not in DROPPED)
    if not others:
        return []
    named = ", ".join(others[:SHOWN]) + (f" and {len(others) - SHOWN} more" if len(others) > SHOWN else "")
    message = f"{len(others)} files are not the adapter's and were left out, unread: {named}."
    return [Finding("left-out", message, severity="note", count=len(others))]


def _apart() -> Finding:
    message = f"{CONFIG} and {WEIGHTS} lie in different folders; put the two files of one adapter into one."
    return Finding("path", message, expected="both in one folder")


def _other_format(name: str) -> Finding | None:
    """What a file is in place of an adapter's weights, as far as its name says."""
    lower = name.lower()
    if lower in MLX or lower.endswith("_adapters.safetensors"):
        return Finding("mlx-format", f"{name} can't be served as it is: {MLX_REMEDY}.", found=name)
    if lower.endswith(".gguf"):
        return Finding("gguf-format", f"{name} can't be served as it is: {GGUF_REMEDY}.", found=name)
    if lower in WHOLE:
        message = f"{name} is of a whole model, not of an adapter; upload what the PEFT model's save_pretrained writes."
        return Finding("whole-model", message, expected=WEIGHTS, found=name)
    if lower.endswith(PICKLES) and "adapter" in lower:
        message = (
            f"{name} may hold pickled objects, which can run code, so it isn't read; load the adapter with PEFT, save "
            f"it with save_pretrained and upload the {WEIGHTS} that it writes."
        )
        return Finding("pickle", message, expected=WEIGHTS, found=name)
    if lower.endswith(ARCHIVES):
        message = f"{name} is an archive inside the upload; upload it, or {CONFIG} and {WEIGHTS}, alone."
        return Finding("nested-archive", message, expected=WEIGHTS, found=name)
    return None
