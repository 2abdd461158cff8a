"""Decoding a mixture of experts with adapters on all of it: `python -m benchmarks.mixtures`.

A randomly initialised model of Qwen3-MoE's kind, adapters of rank 16 with the usual target modules, which PEFT takes
for the experts' parameters too; else as `benchmarks.engine`. PEFT has no mixed batches of such adapters: its figure is
that of one adapter for all rows. On a busy machine `--cpu-time --threads 1` counts the work instead of the time.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.engine import Ours
from benchmarks.peers import Peer
from benchmarks.workload import RANK, SHAPE, medians

MIXTURE: dict[str, Any] = {
    "vocab_size": SHAPE["vocab_size"],
    "hidden_size": 512,
    "moe_intermediate_size": 256,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def make_mixture(folder: Path) -> Path:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model("qwen3_moe", **MIXTURE), dtype=torch.float32
    )
    model.save_pretrained(folder)
    return folder


def attention(base: Path, folder: Path) -> Path:
    """An adapter that leaves experts alone."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(str(folder))
    return folder


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    base, most = make_mixture(folder / "base"), max(arguments.rows)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    plain, peft = Peer(base, folder, 0, clock), Peer(base, folder / "adapters", most, clock)
    ours = Ours(base, [*peft.folders, attention(base, folder / "attention")], clock)
    print("| rows | what | ms/step | tok/s | of own base |\n|---|---|---|---|---|")
    for rows in arguments.rows:
        step = partial(ours.step, rows, arguments.tokens)
        found = medians(
            {
                "generate": partial(plain.step, rows, arguments.tokens),
                "PEFT, one adapter": partial(peft.step, rows, arguments.tokens, mixed=False),
                "ours, base": partial(step, range(0)),
                "ours, one adapter on attention": partial(step, range(most, most + 1)),
                "ours, one adapter": partial(step, range(1)),
                "ours, all distinct": partial(step, range(rows)),
            },
            arguments.rounds,
        )
        for name, seconds in found.items():
            share = f"{found['ours, base'] / seconds:.2f}" if name.startswith("our") else ""
            print(f"| {rows} | {name} | {1e3 * seconds:.1f} | {rows / seconds:.1f} | {share} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


if __name__ == "__main__":
    main()
