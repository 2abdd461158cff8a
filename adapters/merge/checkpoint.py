"""Knows a base model's checkpoint: its tensors on disk and which parameter each becomes; never adapters.

Transformers may rename, split or join tensors while it loads them (core_model_loading.py); its own rules say how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import build
from adapters.errors import BaseModelMissing, Unmergeable

if TYPE_CHECKING:
    from torch import Tensor

BLOCK: Final = 16 << 20  # bytes of a tensor that are in memory at once, in float32
INDEX: Final = "model.safetensors.index.json"
ALONE: Final = "model.safetensors"
FLOATS: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_HEADER_LIMIT: Final = 100 << 20  # as in the safetensors library
_DTYPES: Final = {
    **FLOATS,
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a safetensors file: little-endian, row-major, from byte `start` to `end`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def rows(self) -> int:
        """The length of the first dimension; a number has one row."""
        return self.shape[0] if self.shape else 1

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop), in the tensor's own dtype and memory of their own."""
        import torch

        stop = self.rows if stop is None else stop
        shape = (stop - start, *self.shape[1:]) if self.shape else ()
        row = self.nbytes // self.rows if self.rows else 0
        raw = bytearray((stop - start) * row)
        with self.file.open("rb") as source:
            source.seek(self.start + start * row)
            if source.readinto(raw) != len(raw):
                raise OSError(f"{self.file.name} ends inside {self.name}")
        dtype = getattr(torch, _DTYPES[self.dtype])
        return torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Bounds of consecutive rows, each block of about BLOCK bytes in float32."""
        width = 1
        for length in self.shape[1:]:
            width *= length
        step = max(1, BLOCK // (4 * max(1, width)))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


@dataclass(frozen=True)
class Fused:
    """A parameter that Transformers makes of several tensors. `parts`: a tensor, and the rule's pattern it matched."""

    parts: tuple[tuple[str, Stored], ...]
    converter: Any

    def read(self, parameter: str, model: Any) -> Tensor:
        """The whole parameter, in the tensors' dtype."""
        converter = deepcopy(self.converter)
        for pattern, stored in self.parts:
            converter.add_tensor(parameter, stored.name, pattern, stored.read)
        made = converter.convert(parameter, model=model, config=model.config)[parameter]
        tensor: Tensor = made[0] if isinstance(made, list) else made
        return tensor


@dataclass(frozen=True)
class Checkpoint:
    """`tensors`: all that is stored, by name, in the files' order. `parameters`: what each parameter is read from.
    `ties`: parameters that share another's tensor. `model`: the modules, on the meta device.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    parameters: Mapping[str, Stored | Fused]
    ties: Mapping[str, str]
    model: Any

    def source(self, parameter: str) -> Stored | Fused | None:
        """What the parameter is read from: its own tensor, or the one that it shares."""
        sharing = (one for one, other in self.ties.items() if other == parameter)
        twins = (parameter, self.ties.get(parameter, ""), *sharing)
        return next((self.parameters[twin] for twin in twins if twin in self.parameters), None)

    def alone(self, parameter: str) -> Stored | None:
        """The one tensor that holds this parameter and nothing else, where there is one."""
        source = self.source(parameter)
        return source if isinstance(source, Stored) else None

    def experts(self, parameter: str) -> list[list[Stored]] | None:
        """Of a parameter of experts that is made of one tensor for each of their linears, those by linear and expert.
        None where it is a tensor of its own."""
        source = self.source(parameter)
        if not isinstance(source, Fused):
            return None
        patterns = source.converter.source_patterns
        return [[stored for pattern, stored in source.parts if pattern == each] for each in patterns]


def read_checkpoint(source: str) -> Checkpoint:
    """The checkpoint at `source`, a folder or a hub id; of its weights nothing is read but the headers.

    Raises BaseModelError, and Unmergeable for weights that aren't safetensors or are quantised.
    """
    folder = _folder(source)
    model = build(str(folder))
    config = json.loads((folder / "config.json").read_text())
    if config.get("quantization_config"):
        message = "The base model is quantised; merge into the checkpoint that it was quantised from."
        raise Unmergeable("quantised-base", message, found=str(config["quantization_config"])[:200])
    tensors = {stored.name: stored for file in _files(folder) for stored in _header(file)}
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return Checkpoint(folder, config, tensors, _parameters(model, tensors), ties, model)


def _folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except Exception as error:  # whatever the hub's client raises
        raise BaseModelMissing(f"No base model at {source}: {' '.join(str(error).split())[:300]}") from error


def _files(folder: Path) -> list[Path]:
    """The safetensors files, as Transformers looks for them."""
    if (folder / ALONE).is_file():
        return [folder / ALONE]
    if (folder / INDEX).is_file():
        names = dict.fromkeys(json.loads((folder / INDEX).read_text())["weight_map"].values())
        if all(Path(name).name == name and (folder / name).is_file() for name in names):
            return [folder / name for name in names]
    raise Unmergeable("no-safetensors", "The base model's weights aren't safetensors; save it with save_pretrained.")


def _header(file: Path) -> Iterator[Stored]:
    with file.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        if length > _HEADER_LIMIT:
            raise Unmergeable("no-safetensors", f"{file.name} of the base model isn't a safetensors file.")
        document = json.loads(source.read(length))
    document.pop("__metadata__", None)
    for name, entry in sorted(document.items(), key=lambda item: item[1]["data_offsets"][0]):
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        yield Stored(name, entry["dtype"], tuple(entry["shape"]), file, start, end)


def _parameters(model: Any, tensors: Mapping[str, Stored]) -> dict[str, Stored | Fused]:
    """By parameter, what Transformers reads it from: as convert_and_load_state_dict_in_model does it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = model.state_dict()
    found: dict[str, Stored | Fused] = {}
    for name in sorted(tensors, key=_natural):
        stored = tensors[name]
        parameter, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if parameter not in known and name in known:
            parameter, pattern = name, None
        if pattern is None:
            found[parameter] = stored
        else:
            before = found.get(parameter)
            parts = before.parts if isinstance(before, Fused) else ()
            found[parameter] = Fused((*parts, (pattern, stored)), by_pattern[pattern])
    return found


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Layer 10 after layer 9: the order of an expert's parts is the order in which they are joined."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in name.split(".")]
