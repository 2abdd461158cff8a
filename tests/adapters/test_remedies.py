"""What docs/adapters.md tells people to do with files that are refused, done: then they are taken."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.errors import Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.validation import validate
from tests.adapters.builders import BASE, HIDDEN, VALUES, adapter, write

DOCS = Path(__file__).parents[2] / "docs/adapters.md"


def follow(heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code under a heading, in the folder."""
    section = DOCS.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    monkeypatch.chdir(folder)
    exec(compile(code, heading, "exec"), {})


def refused(folder: Path) -> Any:
    with pytest.raises(Rejected) as refusal:
        validate(folder, BASE)
    (found,) = refusal.value.findings
    return found


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("base_model.model.", "base_model.model._orig_mod.", "compiled-names"),
        ("base_model.", "_orig_mod.base_model.", "compiled-names"),
        (".self_attn.", "._fsdp_wrapped_module.self_attn.", "sharded-names"),
    ],
)
def test_names_of_a_wrapped_model_are_told_and_can_be_renamed(
    before: str, after: str, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, adapter())
    right = load_file(folder / WEIGHTS)
    save_file({name.replace(before, after, 1): tensor for name, tensor in right.items()}, folder / WEIGHTS)
    found = refused(folder)
    assert (found.rule, found.count) == (rule, len(right))
    assert "Wrapped models" in found.message
    follow("Wrapped models", folder, monkeypatch)
    validate(folder, BASE)
    assert all(torch.equal(tensor, right[name]) for name, tensor in load_file(folder / WEIGHTS).items())


def test_mlx_s_files_are_told_and_can_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q, v = (f"model.layers.1.self_attn.{name}_proj" for name in "qv")
    shapes = {
        f"{q}.lora_a": (HIDDEN, 4),
        f"{q}.lora_b": (4, HIDDEN),
        f"{v}.lora_a": (HIDDEN, 4),
        f"{v}.lora_b": (4, VALUES),
    }
    theirs = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(theirs, tmp_path / "adapters.safetensors")
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0}}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert refused(tmp_path).rule == "mlx-format"
    save_file(theirs, tmp_path / WEIGHTS)
    assert refused(tmp_path).rule == "mlx-format"
    follow("MLX", tmp_path, monkeypatch)
    summary = validate(tmp_path, BASE)
    assert (summary.modules, summary.rank_max) == (2, 4)
    ours, alpha = load_file(tmp_path / WEIGHTS), json.loads((tmp_path / CONFIG).read_text())["lora_alpha"]
    product = ours[f"base_model.model.{v}.lora_B.weight"].float() @ ours[f"base_model.model.{v}.lora_A.weight"].float()
    wanted = 20.0 * (theirs[f"{v}.lora_a"].float() @ theirs[f"{v}.lora_b"].float()).T
    assert torch.allclose(alpha / 4 * product, wanted)
