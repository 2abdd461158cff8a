"""Knows how to decide whether an uploaded folder is an adapter that is served exactly; never tenants or states."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from adapters.base import BaseSpec
from adapters.errors import Finding, Rejected
from adapters.files import CHUNK, CONFIG, EXPECTED, WEIGHTS, not_regular, open_regular
from adapters.header import ITEM_BYTES, Header, Tensor, read_header
from adapters.limits import DEFAULT, Limits
from adapters.peft import Layout, PeftConfig, layout, read_config
from adapters.selection import absent

_EXPONENTS: Final = {"F32": ("<u4", 0x7F80_0000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
"""The bits that are all set in infinities and NaNs and in nothing else, by dtype."""


@dataclass(frozen=True)
class Summary:
    """What a page shows of a valid adapter. `targets`: the last parts of its modules' names. `bytes`: both files.

    `beside`: what it has besides pairs: dora, lora_bias, or the names of the parameters that it replaces.
    """

    rank_min: int
    rank_max: int
    modules: int
    targets: tuple[str, ...]
    tensors: int
    parameters: int
    bytes: int
    dtype: str
    rslora: bool
    base_model: str
    beside: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "targets": list(self.targets), "beside": list(self.beside)}


def validate(folder: Path, base: BaseSpec, limits: Limits = DEFAULT) -> Summary:
    """Check an uploaded folder against `base`, in bounded memory, and sum it up. Changes nothing in the folder.

    Raises Rejected with every finding of the first stage that has any: the two files' presence, then the config and the
    header, then modules and shapes, then the values. Raises OSError where the folder can't be read.
    """
    limits = limits.within(base)
    size = _check_entries(folder, limits)
    config, header = _read(folder, limits)
    adapter = layout(config, header, base, limits)
    _check_values(folder / WEIGHTS, header)
    return _summary(adapter, config, header, size)


def _check_entries(folder: Path, limits: Limits) -> int:
    """The two files' size. What else the folder holds is nobody's business, and isn't looked at."""
    findings: list[Finding] = []
    sizes = {}
    with os.scandir(folder) as entries:
        named = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    for name in EXPECTED:
        if name in named and not stat.S_ISREG(named[name].st_mode):
            findings += not_regular(name).findings
        elif name in named:
            sizes[name] = named[name].st_size
    if not findings and len(sizes) < len(EXPECTED):
        findings += absent(named)
    if (size := sum(sizes.values())) > limits.total:
        message = f"The adapter has {size} bytes, more than the {limits.total} allowed; train it with a lower rank."
        findings.append(Finding("too-large", message, "", f"at most {limits.total} bytes", f"{size} bytes"))
    if findings:
        raise Rejected(findings)
    return size


def _read(folder: Path, limits: Limits) -> tuple[PeftConfig, Header]:
    """Both files' metadata; what is wrong with either is told together."""
    findings: list[Finding] = []
    try:
        config = read_config(folder / CONFIG, limits)
    except Rejected as rejected:
        findings += rejected.findings
    try:
        header = read_header(folder / WEIGHTS, limits)
    except Rejected as rejected:
        findings += rejected.findings
    if findings:
        raise Rejected(findings)
    return config, header


def _check_values(path: Path, header: Header) -> None:
    with open_regular(path) as source:
        findings = list(_non_finite(source, header.tensors.values()))
    if findings:
        raise Rejected(findings)


def _non_finite(source: BinaryIO, tensors: Iterable[Tensor]) -> Iterator[Finding]:
    """One finding for each tensor that holds a NaN or an infinity. Reads CHUNK bytes at a time."""
    for tensor in tensors:
        if (position := first_non_finite(source, tensor)) is not None:
            what = "the tensor holds a NaN or an infinity; train the adapter again and watch its loss."
            yield Finding.about(tensor.name, "non-finite", what, "finite numbers", f"element {position}")


def first_non_finite(source: BinaryIO, tensor: Tensor) -> int | None:
    """The flat index of the tensor's first NaN or infinity. Raises Rejected if the file ends inside the tensor."""
    dtype, exponent = _EXPONENTS[tensor.dtype]
    source.seek(tensor.start)
    for start in range(tensor.start, tensor.end, CHUNK):
        wanted = min(CHUNK, tensor.end - start)
        raw = source.read(wanted)
        if len(raw) != wanted:
            raise Rejected.because(
                "truncated", f"{WEIGHTS} ends inside {tensor.name}; upload the whole file.", tensor=tensor.name
            )
        bits = np.frombuffer(raw, dtype)
        bad = (bits & exponent) == exponent
        if bad.any():
            return (start - tensor.start) // ITEM_BYTES[tensor.dtype] + int(bad.argmax())
    return None


def _summary(adapter: Layout, config: PeftConfig, header: Header, size: int) -> Summary:
    pairs = {pair.module: pair.rank for pair in (*adapter.linears, *adapter.embeddings, *adapter.routers)}
    pairs |= {pair.parameter: pair.rank for pair in adapter.experts}
    dtypes = Counter(tensor.dtype for tensor in header.tensors.values())
    kinds = [name for name, used in (("dora", config.dora), ("lora_bias", config.lora_bias)) if used]
    replaced = {f"{each.module}.{each.parameter}": None for each in adapter.replaced}
    return Summary(
        rank_min=min(pairs.values()),
        rank_max=max(pairs.values()),
        modules=len(pairs),
        targets=tuple(sorted({name.rpartition(".")[2] for name in pairs})),
        tensors=len(header.tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in header.tensors.values()),
        bytes=size,
        dtype="+".join(sorted(dtypes)),
        rslora=config.rslora,
        base_model=config.base_model,
        beside=(*kinds, *replaced, *(f"{each.module}.tokens" for each in adapter.rows)),
    )
