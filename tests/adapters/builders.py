"""Adapters made by hand, byte by byte: no torch, no PEFT, so that each fault can be put in on its own."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapters.base import BaseSpec
from adapters.files import CONFIG, WEIGHTS

HIDDEN, OUTER, VALUES, VOCABULARY, LAYERS = 16, 32, 8, 64, 2
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _linears() -> dict[str, tuple[int, int]]:
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (VALUES, HIDDEN),
        "mlp.down_proj": (HIDDEN, OUTER),
    }
    layers = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in shapes.items()}
    return {**layers, "lm_head": (VOCABULARY, HIDDEN)}


BASE = BaseSpec(
    architecture="LlamaForCausalLM",
    context_length=128,
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    linears=_linears(),
    embeddings={"model.embed_tokens": (VOCABULARY, HIDDEN)},
    tied=False,
    vectors={
        "model.norm.weight": HIDDEN,
        **{f"model.layers.{i}.input_layernorm.weight": HIDDEN for i in range(LAYERS)},
        **{f"model.layers.{i}.self_attn.q_proj.bias": HIDDEN for i in range(LAYERS)},
        **{f"model.layers.{i}.self_attn.q_norm.weight": HIDDEN // 2 for i in range(LAYERS)},
    },
)

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""name -> (dtype, shape, bytes)"""


def config(**changes: Any) -> dict[str, Any]:
    """An adapter_config.json as PEFT 0.21 writes it."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "acme/base",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
        **changes,
    }


def config_bytes(**changes: Any) -> bytes:
    return json.dumps(config(**changes)).encode()


def values(shape: tuple[int, ...], dtype: str = "F32", seed: int = 0) -> bytes:
    drawn = np.random.default_rng(seed).standard_normal(shape).astype("<f4")
    return (
        (drawn.view("<u4") >> 16).astype("<u2").tobytes() if dtype == "BF16" else drawn.astype(NUMPY[dtype]).tobytes()
    )


def tensor_name(module: str, side: str) -> str:
    return f"base_model.model.{module}.lora_{side}.weight"


def tensors(targets: Iterable[str] = ("q_proj", "v_proj"), rank: int = 4, dtype: str = "F32") -> Tensors:
    """Both tensors of every linear of BASE whose name ends in one of `targets`."""
    made: Tensors = {}
    for module, (outputs, inputs) in BASE.linears.items():
        if module.rpartition(".")[2] in set(targets):
            for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                made[tensor_name(module, side)] = (dtype, shape, values(shape, dtype, len(made)))
    return made


def named(module: str, part: str, *shape: int, dtype: str = "F32") -> Tensors:
    """One tensor of a module."""
    return {f"base_model.model.{module}.{part}": (dtype, shape, values(shape, dtype))}


def magnitudes(targets: Iterable[str] = ("q_proj", "v_proj")) -> Tensors:
    """What DoRA adds to `tensors`."""
    made: Tensors = {}
    for module, (outputs, _) in BASE.linears.items():
        if module.rpartition(".")[2] in set(targets):
            made |= named(module, "lora_magnitude_vector", outputs)
    return made


def entries(made: Tensors) -> dict[str, Any]:
    """The header's document for tensors that lie one after the other."""
    document, position = {}, 0
    for name, (dtype, shape, raw) in made.items():
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    return document


def container(header: Mapping[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    """A safetensors file of exactly this header and data; `length` lies about the header's."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def weights(made: Tensors | None = None) -> bytes:
    made = tensors() if made is None else made
    return container(entries(made), b"".join(raw for _, _, raw in made.values()))


def adapter(**changes: Any) -> dict[str, bytes]:
    """A valid adapter's two files; `changes` go into the config."""
    return {CONFIG: config_bytes(**changes), WEIGHTS: weights()}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def zipped(path: Path, members: Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def tarred(path: Path, members: Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(plain.getvalue()))
    return path
