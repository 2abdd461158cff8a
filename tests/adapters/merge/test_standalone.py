"""An adapter in its base model: what is written answers as PEFT does, or nothing is."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapters.base import BaseSpec, describe
from adapters.errors import Unfaithful, Unmergeable
from adapters.merge.checkpoint import INDEX, read_checkpoint
from adapters.merge.standalone import CONFIG, PROVENANCE, Plan, plan_merge, seal, write
from adapters.merge.verification import TOLERANCES, Agreement, verify

Folders = Callable[[str], Path]
Specs = Callable[[str], BaseSpec]
Trained = Callable[..., tuple[Path, Any]]

SMALL_SHARDS = 10_000  # bytes
LOADER: Any = AutoModelForCausalLM
TOKENS = torch.arange(48).view(3, 16)


def checked(plan: Plan, folder: Path) -> Agreement:
    merged = read_checkpoint(str(folder))
    return verify(merged, plan.checkpoint, plan.changes, plan.base, plan.dtype)


def apart(folder: Path, model: Any) -> float:
    """How far the logits of the checkpoint, as Transformers loads it, lie from the model's, over their deviation."""
    merged = LOADER.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        own = model(TOKENS).logits
        return float((merged(TOKENS).logits - own).square().mean().sqrt() / own.std())


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "embedding": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "dora-embedding": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "head": {"modules_to_save": ["lm_head"]},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "biases": {"bias": "all"},
    "tokens": {"trainable_token_indices": [2, 40, 41]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # the second one's head is its embedding; it has biases
def test_the_merged_model_answers_as_peft_does(
    architecture: str, variant: str, base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    adapter, model = trained(architecture, **VARIANTS[variant])
    plan = plan_merge(adapter, spec_of(architecture), str(base_folder(architecture)), shard=SMALL_SHARDS)
    write(plan, tmp_path / "out")
    agreement = checked(plan, tmp_path / "out")
    assert agreement.deviation < 1e-5 < 0.1 < agreement.effect
    assert agreement.same_tokens == agreement.positions == 64
    assert apart(tmp_path / "out", model) < 1e-5


@pytest.mark.parametrize("architecture", ["qwen3", "mistral", "gemma", "phi3", "mixtral", "falcon", "opt"])
def test_every_architecture_that_is_served_can_be_merged(
    architecture: str, base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    adapter, model = trained(architecture)
    plan = plan_merge(adapter, spec_of(architecture), str(base_folder(architecture)))
    write(plan, tmp_path / "out")
    assert checked(plan, tmp_path / "out").deviation < 1e-5
    assert apart(tmp_path / "out", model) < 1e-5


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"target_modules": "all-linear"},
    "qwen3_moe": {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
    "granitemoe": {"target_modules": [], "target_parameters": [*EXPERTS, "router.weight"], "use_rslora": True},
}


@pytest.mark.parametrize("original", [True, False], ids=["as-published", "as-loaded"])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_and_routers_are_merged_whether_the_files_hold_them_apart_or_together(
    architecture: str, original: bool, base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    own = LOADER.from_pretrained(base_folder(architecture), dtype=torch.float32)
    own.save_pretrained(tmp_path / "base", save_original_format=original)
    adapter, model = trained(architecture, tmp_path / "base", **MIXTURES[architecture])
    plan = plan_merge(adapter, spec_of(architecture), str(tmp_path / "base"), shard=SMALL_SHARDS)
    write(plan, tmp_path / "out")
    agreement = checked(plan, tmp_path / "out")
    assert agreement.deviation < 1e-5 < 0.1 < agreement.effect
    assert apart(tmp_path / "out", model) < 1e-5
    names = {stored.name for stored in plan.checkpoint.tensors.values()}
    assert names == set(tensors(tmp_path / "out")) == set(tensors(tmp_path / "base"))
    assert any(".experts.0." in name for name in names) == (original and architecture != "granitemoe")


def test_experts_that_were_trained_apart_are_merged_as_peft_reads_them(
    base_folder: Folders, spec_of: Specs, tmp_path: Path
) -> None:
    base, pairs = str(base_folder("qwen3_moe")), {}
    sides = {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)}
    for layer, expert, (part, (outputs, inputs)) in itertools.product(range(2), range(4), sides.items()):
        name = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{part}"
        pairs[f"{name}.lora_A.weight"] = torch.randn(2, inputs)
        pairs[f"{name}.lora_B.weight"] = torch.randn(outputs, 2)
    (tmp_path / "adapter").mkdir()
    save_file(pairs, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": list(sides), "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    plan = plan_merge(tmp_path / "adapter", spec_of("qwen3_moe"), base)
    write(plan, tmp_path / "out")
    assert checked(plan, tmp_path / "out").deviation < 1e-5
    model = PeftModel.from_pretrained(LOADER.from_pretrained(base, dtype=torch.float32), tmp_path / "adapter").eval()
    assert apart(tmp_path / "out", model) < 1e-5


TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "target_modules": ["c_fc", "lm_head"]},
    "dora": {"use_dora": True},
    "lora-bias": {"lora_bias": True, "target_modules": ["c_attn"]},
    "saved": {"modules_to_save": ["c_fc", "ln_1"], "target_modules": ["c_attn"]},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("variant", TRANSPOSED)
def test_weights_that_are_kept_transposed_are_merged_as_peft_does(
    variant: str,
    base_folder: Folders,
    spec_of: Specs,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPT-2's Conv1D; its tensors are merged in blocks of some of their rows, which are inputs here."""
    monkeypatch.setattr("adapters.merge.checkpoint.BLOCK", 1000)
    adapter, model = trained("gpt2", **TRANSPOSED[variant])
    plan = plan_merge(adapter, spec_of("gpt2"), str(base_folder("gpt2")), shard=SMALL_SHARDS)
    write(plan, tmp_path / "out")
    agreement = checked(plan, tmp_path / "out")
    assert agreement.deviation < 1e-5 < 0.1 < agreement.effect
    assert apart(tmp_path / "out", model) < 1e-5


@pytest.mark.parametrize(("dtype", "short"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_a_narrow_base_stays_narrow_and_agrees_within_its_tolerance(
    dtype: str, short: str, base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    LOADER.from_pretrained(base_folder("llama"), dtype=getattr(torch, dtype)).save_pretrained(tmp_path / "base")
    adapter, model = trained("llama", tmp_path / "base")
    plan = plan_merge(adapter, spec_of("llama"), str(tmp_path / "base"))
    write(plan, tmp_path / "out")
    agreement = checked(plan, tmp_path / "out")
    assert plan.dtype == short
    assert 0 < agreement.deviation < agreement.tolerance == TOLERANCES[short]
    assert {tensor.dtype for tensor in tensors(tmp_path / "out").values()} == {getattr(torch, dtype)}
    assert apart(tmp_path / "out", model) < TOLERANCES[short]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_it_is_a_whole_checkpoint_of_shards_with_config_tokenizer_and_provenance(
    tiny_base_model: Path, trained: Trained, tmp_path: Path
) -> None:
    adapter, _ = trained("llama", tiny_base_model)
    plan = plan_merge(adapter, describe(str(tiny_base_model)), str(tiny_base_model), shard=50_000)
    write(plan, tmp_path / "out")
    files = seal(tmp_path / "out", {"adapter": "sha256:0"})
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) == len(plan.shards) > 3
    widest = max(stored.nbytes for stored in plan.checkpoint.tensors.values())
    assert all((tmp_path / "out" / name).stat().st_size < max(50_000, widest) + 5_000 for name in shards)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == plan.weights <= plan.size
    provenance = json.loads((tmp_path / "out" / PROVENANCE).read_text())
    assert provenance["adapter"] == "sha256:0"
    assert set(provenance["files"]) | {PROVENANCE} == {file.name for file in files}
    beside = {CONFIG, INDEX, PROVENANCE, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert beside <= {path.name for path in (tmp_path / "out").iterdir()}
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_a_tied_base_parts_only_when_the_adapter_parts_it(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    plain, _ = trained("qwen2")
    headed, _ = trained("qwen2", target_modules=["lm_head"])
    for adapter, untied in ((plain, False), (headed, True)):
        plan = plan_merge(adapter, spec_of("qwen2"), str(base_folder("qwen2")))
        write(plan, tmp_path / str(untied))
        assert plan.untied is untied
        assert json.loads((tmp_path / str(untied) / CONFIG).read_text())["tie_word_embeddings"] is not untied
        assert ("lm_head.weight" in tensors(tmp_path / str(untied))) is untied


def test_renamed_tensors_keep_the_names_that_the_base_has_on_disk(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    """A checkpoint of the inner model alone has no prefix; Transformers adds it."""
    bare = tmp_path / "bare"
    LOADER.from_pretrained(base_folder("qwen2")).model.save_pretrained(bare)
    config = json.loads((base_folder("qwen2") / CONFIG).read_text())
    (bare / CONFIG).write_text(json.dumps(config))
    adapter, model = trained("qwen2")
    plan = plan_merge(adapter, spec_of("qwen2"), str(bare))
    write(plan, tmp_path / "out")
    assert checked(plan, tmp_path / "out").deviation < 1e-5
    assert "layers.0.self_attn.q_proj.weight" in tensors(tmp_path / "out")
    assert apart(tmp_path / "out", model) < 1e-5


def test_the_check_finds_one_module_that_was_not_merged(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    adapter, _ = trained("llama")
    plan = plan_merge(adapter, spec_of("llama"), str(base_folder("llama")))
    write(plan, tmp_path / "out")
    (shard,) = (tmp_path / "out").glob("*.safetensors")
    spoilt = load_file(shard)
    name = "model.layers.1.self_attn.q_proj.weight"
    spoilt[name] = load_file(base_folder("llama") / "model.safetensors")[name]
    save_file(spoilt, shard, {"format": "pt"})
    with pytest.raises(Unfaithful) as refused:
        checked(plan, tmp_path / "out")
    assert refused.value.rule == "unfaithful"


def refusal(adapter: Path, spec: BaseSpec, source: Path) -> str:
    with pytest.raises(Unmergeable) as refused:
        plan_merge(adapter, spec, str(source))
    return refused.value.rule


def test_what_no_checkpoint_could_hold_is_refused_by_name(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    plain, _ = trained("llama")
    biased, _ = trained("llama", lora_bias=True)
    spec, source = spec_of("llama"), base_folder("llama")
    assert refusal(biased, spec, source) == "needs-bias"
    quantised = _copy(source, tmp_path / "quantised")
    config = json.loads((quantised / CONFIG).read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (quantised / CONFIG).write_text(json.dumps(config))
    assert refusal(plain, spec, quantised) == "quantised-base"
    pickled = _copy(source, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    assert refusal(plain, spec, pickled) == "no-safetensors"
    eight = _copy(source, tmp_path / "eight")
    weights = load_file(eight / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 32, dtype=torch.int8)
    save_file(weights, eight / "model.safetensors", {"format": "pt"})
    assert refusal(plain, spec, eight) == "quantised-base"
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(16, 32)
    save_file(weights, eight / "model.safetensors", {"format": "pt"})
    assert refusal(plain, spec, eight) == "base-changed"


def test_lora_bias_is_merged_where_the_base_has_a_bias(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    adapter, model = trained("qwen2", lora_bias=True, target_modules=["q_proj", "v_proj"])
    plan = plan_merge(adapter, spec_of("qwen2"), str(base_folder("qwen2")))
    write(plan, tmp_path / "out")
    assert apart(tmp_path / "out", model) < 1e-5


def test_a_value_that_the_dtype_cannot_hold_stops_the_merge(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    LOADER.from_pretrained(base_folder("llama"), dtype=torch.float16).save_pretrained(tmp_path / "base")
    adapter, _ = trained("llama", r=1, lora_alpha=1_000_000)
    plan = plan_merge(adapter, spec_of("llama"), str(tmp_path / "base"))
    with pytest.raises(Unmergeable, match="overflow"):
        write(plan, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def _copy(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


class Interrupted(Exception):
    pass


def test_what_was_finished_before_an_interruption_is_not_done_again(
    base_folder: Folders, spec_of: Specs, trained: Trained, tmp_path: Path
) -> None:
    adapter, _ = trained("llama")
    plan = plan_merge(adapter, spec_of("llama"), str(base_folder("llama")), shard=SMALL_SHARDS)
    out = tmp_path / "out"
    told = 0

    def stop(stage: str, count: int) -> None:
        nonlocal told
        told += count
        if told > plan.weights // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        write(plan, out, stop)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert 0 < len(before) < len(plan.shards)
    (out / ".part-left-by-a-killed-process").write_bytes(b"half")
    write(plan, out)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert before.items() <= after.items()
    assert len(after) == len(plan.shards)
    assert not list(out.glob(".part*"))
    other = plan_merge(trained("llama", seed=2)[0], spec_of("llama"), str(base_folder("llama")), shard=SMALL_SHARDS)
    write(other, out)
    assert not before.items() & {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}.items()


MEASURED = """
import resource, sys
from pathlib import Path
import torch, transformers, numpy
from transformers import LlamaForCausalLM
from adapters.merge import checkpoint, standalone, verification, writing
from adapters.base import BaseSpec

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

adapter, base, out, spec = sys.argv[1:]
before = peak()
plan = standalone.plan_merge(Path(adapter), BaseSpec.from_json(Path(spec).read_text()), base, shard=100 << 20)
standalone.write(plan, Path(out))
merged = checkpoint.read_checkpoint(out)
verification.verify(merged, plan.checkpoint, plan.changes, plan.base, plan.dtype)
standalone.seal(Path(out), {})
largest = max(stored.nbytes for stored in plan.checkpoint.tensors.values())
print(peak() - before, largest, plan.weights)
"""


def test_memory_is_bounded_by_the_largest_tensor_not_by_the_model(tmp_path: Path) -> None:
    """A base of 0.4 GB, whose largest tensor has 16 MB: merged and verified in a process of its own."""
    spec = _large_base(tmp_path / "base")
    adapter = _large_adapter(tmp_path / "adapter", spec)
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_json()))
    told = [str(path) for path in (adapter, *(tmp_path / name for name in ("base", "out", "spec.json")))]
    command = [sys.executable, "-c", MEASURED, *told]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, largest, weights = map(int, done.stdout.split())
    assert largest == 16 << 20
    assert weights > 1.5 * largest + 300e6
    assert grown < 1.5 * largest + 300e6


def _large_base(folder: Path) -> BaseSpec:
    """A Llama of the shapes below whose weights are one block of random numbers, again and again."""
    from transformers import LlamaConfig

    from adapters.base import build
    from adapters.merge.writing import Entry, write_safetensors

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=4096,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    noise = (0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))).numpy().tobytes()

    def entry(name: str, shape: tuple[int, ...]) -> Entry:
        count = 4 * torch.Size(shape).numel()
        ones = torch.ones(shape).numpy().tobytes() if len(shape) == 1 else b""
        pieces = [ones] if ones else [noise] * (count // len(noise))
        return Entry(name, "F32", shape, count, lambda: iter(pieces))

    state = build(str(folder)).state_dict()
    entries = [entry(name, tuple(tensor.shape)) for name, tensor in state.items()]
    write_safetensors(folder / "model.safetensors", entries, {"format": "pt"})
    return describe(str(folder))


def _large_adapter(folder: Path, spec: BaseSpec) -> Path:
    """LoRA of rank 16 on every linear."""
    folder.mkdir()
    drawn = torch.Generator().manual_seed(1)
    made = {}
    for module, (outputs, inputs) in spec.linears.items():
        prefix = f"base_model.model.{module}."
        made[f"{prefix}lora_A.weight"] = 0.02 * torch.randn(16, inputs, generator=drawn)
        made[f"{prefix}lora_B.weight"] = 0.02 * torch.randn(outputs, 16, generator=drawn)
    save_file(made, folder / "adapter_model.safetensors")
    names = sorted({module.rpartition(".")[2] for module in spec.linears})
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": names, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
