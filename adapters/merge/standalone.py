"""Knows how an adapter and its base model become one checkpoint that needs neither; never jobs, tenants or downloads.

Tensors keep the names and dtypes that they have in the base's files, so whatever loads the base loads the result. They
are read, changed and written a block of rows at a time: no tensor is ever whole in memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.base import BaseSpec
from adapters.errors import Unmergeable
from adapters.files import CHUNK
from adapters.manifest import File
from adapters.merge.changes import Change, Changes
from adapters.merge.checkpoint import FLOATS, INDEX, Checkpoint, Stored, read_checkpoint
from adapters.merge.writing import Entry, Progress, appearing, floats, silent, sweep_parts, write_safetensors
from adapters.peft import ExpertPairs

if TYPE_CHECKING:
    from torch import Tensor

SHARD: Final = 2 << 30  # bytes
CONFIG: Final = "config.json"
PROVENANCE: Final = "provenance.json"
BESIDE: Final = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What lies beside a base's weights and goes with the merged ones. Never code."""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of the result: `stored` as the adapter changes it where it changes `parameter`, else as it is. Of a
    parameter of experts that the files hold apart, `expert` and its `part` say which of them it is."""

    name: str
    stored: Stored
    parameter: str
    expert: int = -1
    part: int = 0


@dataclass(frozen=True)
class Plan:
    """What is to be written. `fingerprint` differs where base, adapter or shards do: parts of two plans never mix."""

    checkpoint: Checkpoint
    changes: Changes
    base: BaseSpec
    shards: Sequence[Sequence[Output]]
    untied: bool
    fingerprint: str

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return sum(output.stored.nbytes for shard in self.shards for output in shard)

    @property
    def size(self) -> int:
        """Bytes of the result, about."""
        beside = (self.checkpoint.folder / name for name in BESIDE)
        return self.weights + sum(path.stat().st_size for path in beside if path.is_file()) + CHUNK

    @property
    def dtype(self) -> str:
        """The narrowest dtype that a changed tensor is stored in."""
        changed = {o.stored.dtype for shard in self.shards for o in shard if o.parameter in self.changes.parameters}
        return next(dtype for dtype in ("BF16", "F16", "F32") if dtype in changed)

    def path(self, folder: Path, number: int) -> Path:
        """Where shard `number`, from 0, goes."""
        return folder / f"model-{number + 1:05}-of-{len(self.shards):05}.safetensors"


def plan_merge(adapter: Path, base: BaseSpec, source: str, *, shard: int = SHARD) -> Plan:
    """Find out what a merge of the folder `adapter` into the base at `source` takes; writes nothing.

    Raises Unmergeable for what can't be merged exactly, Rejected for an adapter that doesn't fit, BaseModelError.
    """
    checkpoint = read_checkpoint(source)
    changes = Changes(adapter, base)
    untied = _untied(changes.parameters, base, checkpoint)
    _refuse(changes, base, checkpoint)
    apart = {output.name: output for output in _apart(changes, checkpoint)}
    outputs = [
        apart.get(stored.name) or Output(stored.name, stored, _parameter(checkpoint, stored))
        for stored in checkpoint.tensors.values()
    ]
    if untied:
        twins = (f"{base.input_embedding}.weight", f"{base.head}.weight")
        missing = [twin for twin in twins if twin not in checkpoint.parameters]
        outputs += [Output(twin, _alone(checkpoint, twin), twin) for twin in missing]
    shards = _pack(outputs, shard)
    return Plan(checkpoint, changes, base, shards, untied, _fingerprint(adapter, shards))


def write(plan: Plan, folder: Path, progress: Progress = silent) -> None:
    """Write the checkpoint into `folder`, going on where another call of the same plan was killed."""
    _take_up(plan, folder)
    for number, shard in enumerate(plan.shards):
        path = plan.path(folder, number)
        if path.exists():
            progress("merging", sum(output.stored.nbytes for output in shard))
        else:
            write_safetensors(path, [_entry(plan, output) for output in shard], {"format": "pt"}, progress)
    names = {o.name: plan.path(folder, number).name for number, shard in enumerate(plan.shards) for o in shard}
    _write_json(folder / INDEX, {"metadata": {"total_size": plan.weights}, "weight_map": names})
    _write_json(folder / CONFIG, _config(plan))
    for name in BESIDE:
        if (plan.checkpoint.folder / name).is_file():
            with appearing(folder / name) as target, (plan.checkpoint.folder / name).open("rb") as source:
                shutil.copyfileobj(source, target)


def seal(folder: Path, provenance: Mapping[str, Any], progress: Progress = silent) -> tuple[File, ...]:
    """Hash every file, write the provenance beside them, and return them all."""
    (folder / PROVENANCE).unlink(missing_ok=True)
    files = []
    for path in sorted(folder.iterdir()):
        files.append(File.of(path))
        progress("sealing", path.stat().st_size)
    hashes = {file.name: {"size": file.size, "sha256": file.sha256} for file in files}
    _write_json(folder / PROVENANCE, {**provenance, "files": hashes})
    return (*files, File.of(folder / PROVENANCE))


def _untied(changes: Mapping[str, Change], base: BaseSpec, checkpoint: Checkpoint) -> bool:
    """Whether head and embedding, one tensor in the base, part."""
    if not base.tied:
        return False
    embedding, head = (changes.get(f"{name}.weight", Change()) for name in (base.input_embedding, base.head))
    return embedding != head or embedding.pair is not None


def _refuse(changes: Changes, base: BaseSpec, checkpoint: Checkpoint) -> None:
    for parameter, change in changes.parameters.items():
        if change.experts is not None:
            _refuse_experts(change.experts, checkpoint)
            continue
        if parameter not in base.parameters:
            message = (
                f"The adapter trained a bias for {parameter.removesuffix('.bias')} (lora_bias), which has none in this "
                "base model, so a merged checkpoint can't hold it; train with lora_bias=false."
            )
            raise Unmergeable("needs-bias", message, tensor=parameter)
        _refuse_stored(parameter, checkpoint.alone(parameter), base.parameters[parameter])
        assert change.bias is None or parameter in base.vectors


def _refuse_stored(parameter: str, stored: Stored | None, shape: tuple[int, ...]) -> None:
    if stored is None:
        message = f"{parameter} is a part of another tensor in the base's files, so it can't be changed there."
        raise Unmergeable("fused-tensor", message, tensor=parameter)
    if stored.dtype not in FLOATS:
        message = f"{parameter} is quantised in the base's files; merge into the checkpoint it was quantised from."
        raise Unmergeable("quantised-base", message, tensor=parameter, expected="F32, F16, BF16", found=stored.dtype)
    if stored.shape != shape:
        message = f"{parameter} isn't what it was when the base model was registered; register the base again."
        raise Unmergeable("base-changed", message, tensor=parameter, found=str(list(stored.shape)))


def _refuse_experts(pairs: ExpertPairs, checkpoint: Checkpoint) -> None:
    """All of them in one tensor, or each one's linears in one each."""
    parts = checkpoint.experts(pairs.parameter)
    if parts is None:
        _refuse_stored(pairs.parameter, checkpoint.alone(pairs.parameter), (pairs.experts, pairs.outputs, pairs.inputs))
        return
    for part in parts:
        if len(part) != pairs.experts or pairs.outputs % len(parts):
            message = f"{pairs.parameter} has other experts than when the base was registered; register it again."
            raise Unmergeable("base-changed", message, tensor=pairs.parameter, found=str(len(part)))
        for stored in part:
            _refuse_stored(pairs.parameter, stored, (pairs.outputs // len(parts), pairs.inputs))


def _apart(changes: Changes, checkpoint: Checkpoint) -> Iterator[Output]:
    """The experts' linears that the files hold apart and the adapter changes."""
    for pairs in changes.layout.experts:
        for at, part in enumerate(checkpoint.experts(pairs.parameter) or ()):
            for expert, stored in enumerate(part):
                yield Output(stored.name, stored, pairs.parameter, expert, at)


def _parameter(checkpoint: Checkpoint, stored: Stored) -> str:
    """The parameter that is read from this tensor alone; "" where it is a part of one, or of none."""
    return next((name for name, source in checkpoint.parameters.items() if source is stored), "")


def _alone(checkpoint: Checkpoint, parameter: str) -> Stored:
    stored = checkpoint.alone(parameter)
    assert stored is not None, "tied parameters are one tensor"
    return stored


def _pack(outputs: Sequence[Output], limit: int) -> list[list[Output]]:
    """Neighbours together, up to `limit` bytes; a larger tensor alone."""
    shards: list[list[Output]] = []
    room = 0
    for output in outputs:
        if not shards or output.stored.nbytes > room:
            shards.append([])
            room = limit
        shards[-1].append(output)
        room -= output.stored.nbytes
    return shards


def _fingerprint(adapter: Path, shards: Sequence[Sequence[Output]]) -> str:
    hasher = hashlib.sha256()
    for path in sorted(adapter.iterdir()):
        hasher.update(f"{path.name} {File.of(path).sha256}\n".encode())
    for number, shard in enumerate(shards):
        for output in shard:
            stored = output.stored
            status = stored.file.stat()
            where = (
                number,
                output.name,
                stored.file.name,
                stored.start,
                stored.end,
                status.st_size,
                status.st_mtime_ns,
            )
            hasher.update(f"{where}\n".encode())
    return hasher.hexdigest()


def _take_up(plan: Plan, folder: Path) -> None:
    """Keep what an earlier call of the same plan has finished, and nothing else. The plan's mark lies beside."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder.with_name(f"{folder.name}.plan")
    if not mark.is_file() or mark.read_text() != plan.fingerprint:
        for path in folder.iterdir():
            path.unlink()
        mark.write_text(plan.fingerprint)
    sweep_parts(folder)


def _entry(plan: Plan, output: Output) -> Entry:
    stored = output.stored
    if output.parameter in plan.changes.parameters:
        return floats(output.name, stored.dtype, stored.shape, partial(_changed, plan, output))
    return Entry(output.name, stored.dtype, stored.shape, stored.nbytes, partial(_copied, stored))


def _changed(plan: Plan, output: Output) -> Iterator[Tensor]:
    import torch

    dtype = getattr(torch, FLOATS[output.stored.dtype])
    for start, stop in output.stored.blocks():
        rows = _rows(plan, output, start, stop).to(dtype)
        if not bool(torch.isfinite(rows).all()):
            message = f"{output.parameter} with the adapter in it exceeds what {output.stored.dtype} can hold."
            raise Unmergeable("overflow", message, tensor=output.parameter, found=output.stored.dtype)
        yield rows


def _rows(plan: Plan, output: Output, start: int, stop: int) -> Tensor:
    """Float32."""
    pairs = plan.changes.parameters[output.parameter].experts
    if pairs is None or output.expert < 0:
        return plan.changes.rows(output.parameter, output.stored, start, stop)
    rows = output.stored.read(start, stop).float()
    plan.changes.add_expert(rows, pairs, output.expert, output.part * output.stored.rows + start)
    return rows


def _copied(stored: Stored) -> Iterator[bytes]:
    with stored.file.open("rb") as source:
        source.seek(stored.start)
        left = stored.nbytes
        while left and (chunk := source.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk


def _config(plan: Plan) -> dict[str, Any]:
    config = dict(plan.checkpoint.config)
    if plan.untied:
        config["tie_word_embeddings"] = False
        if isinstance(config.get("text_config"), dict):
            config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    for name in ("_name_or_path", "auto_map"):  # another's folder, another's code
        config.pop(name, None)
    return config


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    with appearing(path) as target:
        target.write(json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")
