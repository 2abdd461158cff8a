"""How large a header may be: as large as that of any adapter of the base, and no larger."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.base import BaseSpec
from adapters.confinement import Cell
from adapters.errors import Rejected
from adapters.limits import DEFAULT, MIB
from adapters.mixtures import Experts
from tests.adapters import builders

LAYERS, EXPERTS, HIDDEN, WIDE = 48, 128, 16, 8
PARTS = {"gate_proj": (WIDE, HIDDEN), "up_proj": (WIDE, HIDDEN), "down_proj": (HIDDEN, WIDE)}
LARGE = BaseSpec(
    "Qwen3MoeForCausalLM",
    64,
    50,
    HIDDEN,
    {f"model.layers.{at}.self_attn.{side}_proj": (HIDDEN, HIDDEN) for at in range(LAYERS) for side in "qkvo"},
    {"model.embed_tokens": (50, HIDDEN)},
    False,
    experts={
        f"model.layers.{at}.mlp.experts.{name}": Experts(EXPERTS, *sides, 8, parts)
        for at in range(LAYERS)
        for name, sides, parts in (
            ("gate_up_proj", (2 * WIDE, HIDDEN), ("gate_proj", "up_proj")),
            ("down_proj", (HIDDEN, WIDE), ("down_proj",)),
        )
    },
    fused={"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"},
)


def header(rank: int) -> dict[str, Any]:
    """Of an adapter of every expert's linears, apart."""
    found, at = {}, 0
    for layer in range(LAYERS):
        modules = {f"self_attn.{side}_proj": (HIDDEN, HIDDEN) for side in "qkvo"}
        modules |= {f"mlp.experts.{expert}.{part}": sides for expert in range(EXPERTS) for part, sides in PARTS.items()}
        for module, (outputs, inputs) in modules.items():
            for side, shape in (("A", [rank, inputs]), ("B", [outputs, rank])):
                size = 2 * shape[0] * shape[1]
                name = f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"
                found[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
                at += size
    return found


def laid(folder: Path, raw: bytes, data: int) -> list[Path]:
    targets = [*(f"{side}_proj" for side in "qkvo"), *PARTS]
    files = builders.write(
        folder,
        {
            "adapter_config.json": builders.config_bytes(r=1, target_modules=targets),
            "adapter_model.safetensors": len(raw).to_bytes(8, "little") + raw + bytes(data),
        },
    )
    return sorted(files.iterdir())


def test_an_adapter_of_128_experts_in_48_layers_is_taken(tmp_path: Path) -> None:
    entries = header(1)
    raw = json.dumps(entries, separators=(",", ":")).encode()
    assert len(raw) > 4 * DEFAULT.header
    assert len(entries) > 2 * DEFAULT.tensors
    work = tmp_path / "work"
    work.mkdir()
    files = laid(tmp_path / "upload", raw, max(entry["data_offsets"][1] for entry in entries.values()))
    summary = Cell().examine(files, work, LARGE.to_json()).summary
    assert summary["tensors"] == len(entries)
    assert summary["modules"] == 6 * LAYERS
    assert (summary["rank_min"], summary["rank_max"]) == (1, 2)


@pytest.mark.parametrize("fill", [b"[", b'{"a":', b" ", b"9"])
def test_a_header_that_says_nothing_is_refused_however_long_the_bases_may_be(tmp_path: Path, fill: bytes) -> None:
    most = DEFAULT.within(LARGE).header
    work = tmp_path / "work"
    work.mkdir()
    raw = (b'{"x":' + fill * most)[:most]
    with pytest.raises(Rejected) as refusal:
        Cell(memory=256 * MIB, seconds=30).examine(laid(tmp_path / "upload", raw, 0), work, LARGE.to_json())
    assert not {"time-limit", "validation-crashed"} & set(refusal.value.rules)


def test_one_byte_more_than_the_base_needs_is_refused_and_a_dense_base_needs_no_more_than_a_mebibyte(
    tmp_path: Path,
) -> None:
    most = DEFAULT.within(LARGE).header
    assert most < 16 * MIB
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(Rejected) as refusal:
        Cell().examine(laid(tmp_path / "upload", b" " * (most + 1), 0), work, LARGE.to_json())
    assert refusal.value.rules == ("header-too-large",)
    dense = replace(LARGE, experts={}, fused={})
    assert DEFAULT.within(dense) == DEFAULT
