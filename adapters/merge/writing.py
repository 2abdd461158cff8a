"""Knows how to write a safetensors file tensor by tensor, whole or not at all; never what its tensors mean."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from adapters.merge.checkpoint import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

PART: Final = ".part-"
WIDTHS: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}

Progress = Callable[[str, int], None]
"""Told the stage and how many bytes were dealt with since it was last told; raises to stop the work."""


def silent(stage: str, count: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Entry:
    """A tensor to be written. `nbytes`: its size. `content`: gives it in order, in pieces, each in `dtype` or raw."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    content: Callable[[], Iterator[Tensor | bytes]]


def floats(name: str, dtype: str, shape: tuple[int, ...], content: Callable[[], Iterator[Tensor]]) -> Entry:
    """A tensor of floating point numbers; its pieces are brought into `dtype`."""
    import torch

    wanted = getattr(torch, FLOATS[dtype])

    def pieces() -> Iterator[Tensor | bytes]:
        for piece in content():
            yield piece.to(wanted)

    return Entry(name, dtype, shape, prod(shape) * WIDTHS[dtype], pieces)


def write_safetensors(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], progress: Progress = silent
) -> None:
    """Write the tensors in this order. The file appears at `path` when it is whole and on the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for entry in entries:
        span = [position, position + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": span}
        position += entry.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with appearing(path) as target:
        target.write(len(raw).to_bytes(8, "little") + raw)
        for entry in entries:
            before = target.tell()
            for piece in entry.content():
                progress("merging", _put(target, piece))
            assert target.tell() - before == entry.nbytes, f"{entry.name} has another size than was said"


@contextmanager
def appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is at `path` once the block has ended well, and nowhere otherwise."""
    draft = path.with_name(f"{PART}{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as target:
            yield target
            target.flush()
            os.fsync(target.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sweep_parts(folder: Path) -> None:
    """Take away what a killed writer left behind."""
    for draft in folder.glob(f"{PART}*"):
        draft.unlink(missing_ok=True)


def _put(target: IO[bytes], piece: Tensor | bytes) -> int:
    import torch

    if isinstance(piece, bytes):
        return target.write(piece)
    raw: Any = piece.contiguous().view(-1).view(torch.uint8).numpy()
    return target.write(raw)
