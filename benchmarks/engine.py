"""Decoding and prefill with the engine and with its peers: `python -m benchmarks.engine`.

The reference workload: a randomly initialised model of Qwen2-0.5B's shape with 32,000 tokens of vocabulary; adapters
of rank 16 on all seven linears; prompts of 64 tokens; greedy, end of sequence ignored. Peers, in float32, are
Transformers' `generate` on the same rows, and PEFT's mixed batch (`adapter_names`). Ours and the peers take turns;
figures are medians of rounds, a round the median of its steps. A step's time is what all rows wait for their next
token.

`--checkpoint bfloat16` rounds the model's weights to bfloat16, as most published ones are: peers and ours then compute
in float32 on the same widened numbers, which ours reads as they are kept.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Event, Limits, Scheduler
from inference.engine.sequence import Sequence
from inference.lora.linear import LoraLinear, Siblings
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights, read
from inference.models.load import Model, load

PROMPT = 64
WEIGHTS = "adapter_model.safetensors"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def make_model(folder: Path, layers: int, dtype: torch.dtype = torch.float32) -> Path:
    """The reference model's shape with random weights, rounded to `dtype` and saved in it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **{**SHAPE, "num_hidden_layers": layers})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.to(dtype).save_pretrained(folder)
    return folder


class Peer:
    """Transformers' model, with PEFT's adapters on it if there are any."""

    def __init__(self, base: Path, folder: Path, adapters: int) -> None:
        self._model: Any
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.folders: list[Path] = []
        config = LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, init_lora_weights=False)
        for number in range(adapters):
            name = f"a{number}"
            if number:
                self._model.add_adapter(name, config)
            else:
                self._model = get_peft_model(self._model, config, adapter_name=name)
        self._model.train(False)
        if adapters:
            self._model.save_pretrained(folder)
            self.folders = [folder / f"a{number}" for number in range(adapters)]

    @torch.inference_mode()
    def step(self, rows: int, tokens: int) -> float:
        """Seconds a step: the median of `tokens` steps after the prompts'."""
        ids = torch.randint(0, SHAPE["vocab_size"], (rows, PROMPT))
        mixed = {"adapter_names": [f"a{row % len(self.folders)}" for row in range(rows)]} if self.folders else {}
        times: list[float] = []

        def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(time.perf_counter())
            return torch.zeros(rows, dtype=torch.bool)

        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            max_new_tokens=tokens + 1,
            stopping_criteria=[note],
            **mixed,
        )
        return statistics.median(later - earlier for earlier, later in pairwise(times))

    @torch.inference_mode()
    def prefill(self, rows: int, length: int) -> float:
        """Seconds for `rows` prompts of `length` tokens."""
        ids = torch.randint(0, SHAPE["vocab_size"], (rows, length))
        started = time.perf_counter()
        self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - started


class Ours:
    """The engine without a server: the same scheduler, pools and runner, stepped here."""

    def __init__(self, base: Path, folders: list[Path]) -> None:
        slots = max(1, len(folders))
        self.model: Model = load(str(base), torch.device("cpu"), torch.float32, slots)
        self._folders = folders
        self._slots = SlotPool(slots, self.model.sites, self._load)
        limits = Limits(2048, SHAPE["vocab_size"], 64, 4096)
        self._scheduler = Scheduler(limits, BlockPool(1024, 16), self._slots)
        self._engine = Engine(self._scheduler, Runner(self.model, 1024, 16), self._ignore)
        self._number = 0

    def step(self, rows: int, tokens: int, adapters: range) -> float:
        """Seconds a step: the median of `tokens` steps in which all rows decode. No adapters: the base alone."""
        self._submit(rows, PROMPT, tokens + 8, adapters)
        while len(self._scheduler.running) < rows or any(s.remaining > 1 for s in self._scheduler.running):
            self._engine.step()
        times = [time.perf_counter()]
        for _ in range(tokens):
            self._engine.step()
            times.append(time.perf_counter())
        self._cancel()
        return statistics.median(later - earlier for earlier, later in pairwise(times))

    def prefill(self, rows: int, length: int, adapters: range = range(0)) -> float:
        """Seconds until `rows` prompts of `length` tokens each have their first token."""
        self._submit(rows, length, 1, adapters)
        started = time.perf_counter()
        while self._engine.step():
            pass
        return time.perf_counter() - started

    def unload(self) -> None:
        """Empty the slots."""
        for number in range(len(self._folders)):
            self._slots.evict(str(number))

    def products(self, rows: int) -> float:
        """Seconds for the bare products of a step: every linear once, without adapters."""
        linears: dict[Siblings, None] = {}
        for module in self.model.network.modules():
            if isinstance(module, LoraLinear) and module.siblings is not None:
                linears[module.siblings] = None
        inputs = {siblings: torch.randn(rows, siblings.inputs) for siblings in linears}
        started = time.perf_counter()
        for siblings, x in inputs.items():
            siblings.multiply(x)
        return time.perf_counter() - started

    def _submit(self, rows: int, length: int, tokens: int, adapters: range) -> None:
        for row in range(rows):
            self._number += 1
            prompt = torch.randint(0, SHAPE["vocab_size"], (length,)).tolist()
            sampling = Sampling(tokens, temperature=0, ignore_eos=True)
            digest = str(adapters[row % len(adapters)]) if adapters else ""
            self._engine.submit(Sequence(self._number, prompt, sampling, digest))

    def _cancel(self) -> None:
        for sequence in list(self._scheduler.live):
            self._scheduler.cancel(sequence)

    def _load(self, digest: str) -> Future[AdapterWeights]:
        future: Future[AdapterWeights] = Future()
        model = self.model
        future.set_result(read(self._folders[int(digest)], model.spec, model.device, model.sites.frozen))
        return future

    def _ignore(self, events: list[Event]) -> None:
        """Nobody listens."""


def narrowed(folders: list[Path], into: Path) -> list[Path]:
    """The same adapters in bfloat16."""
    made = []
    for folder in folders:
        made.append(into / folder.name)
        made[-1].mkdir(parents=True)
        shutil.copy(folder / "adapter_config.json", made[-1])
        tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, made[-1] / WEIGHTS, metadata={"format": "pt"})
    return made


def medians(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Candidates take turns; the median of each."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            taken[name].append(run())
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    base = make_model(folder / "base", arguments.layers, getattr(torch, arguments.checkpoint))
    most = max(arguments.rows)
    plain, peft = Peer(base, folder, 0), Peer(base, folder / "adapters", most)
    ours = Ours(base, [*peft.folders, *narrowed(peft.folders, folder / "narrow")])
    print("rows  what                          ms/step   tok/s  against")
    for rows in arguments.rows:
        decode(arguments, rows, most, plain, peft, ours)
    prefill(arguments, plain, ours)


def decode(arguments: argparse.Namespace, rows: int, most: int, plain: Peer, peft: Peer, ours: Ours) -> None:
    tokens = arguments.tokens
    ours.unload()
    found = medians(
        {
            "transformers.generate": partial(plain.step, rows, tokens),
            "ours, base": partial(ours.step, rows, tokens, range(0)),
            "ours, products alone": partial(ours.products, rows),
        },
        arguments.rounds,
    )
    found |= medians(
        {
            "PEFT, mixed batch": partial(peft.step, rows, tokens),
            "ours, adapters idle": partial(ours.step, rows, tokens, range(0)),
            "ours, 4 adapters": partial(ours.step, rows, tokens, range(min(4, rows))),
            "ours, all distinct": partial(ours.step, rows, tokens, range(rows)),
            "ours, all distinct, bfloat16": partial(ours.step, rows, tokens, range(most, most + rows)),
        },
        arguments.rounds,
    )
    for name, seconds in found.items():
        own, peer = found["ours, base"] / seconds, found["PEFT, mixed batch"] / seconds
        against = ""
        if name == "ours, base":
            against = f"{found['transformers.generate'] / seconds:.2f} x transformers.generate"
        elif name == "ours, products alone":
            against = f"{seconds / found['ours, base']:.2f} of own base's step"
        elif "idle" in name:
            against = f"{own:.2f} of own base"
        elif name.startswith("ours"):
            against = f"{own:.2f} of own base, {peer:.2f} x PEFT's mixed batch"
        print(f"{rows:4}  {name:28} {1e3 * seconds:9.1f} {rows / seconds:7.1f}  {against}", flush=True)


def prefill(arguments: argparse.Namespace, plain: Peer, ours: Ours) -> None:
    """8 prompts of 512 tokens, against Transformers and against the same multiply-adds as one large GEMM each."""
    rows, length = 8, 512
    side = torch.randn(2048, 2048)
    numbers = sum(outputs * inputs for name, (outputs, inputs) in ours.model.spec.linears.items() if "layers" in name)

    def gemm() -> float:
        started = time.perf_counter()
        for _ in range(8):
            side @ side
        return (time.perf_counter() - started) / 8 / 2048**3 * numbers * rows * length

    found = medians(
        {
            "transformers": partial(plain.prefill, rows, length),
            "ours": partial(ours.prefill, rows, length),
            "GEMM of 2048 x 2048": gemm,
        },
        arguments.rounds,
    )
    print(f"prefill of {rows} x {length} tokens, seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    print(f"  ours: {found['transformers'] / found['ours']:.2f} x transformers", end=", ")
    print(f"{found['GEMM of 2048 x 2048'] / found['ours']:.2f} of the GEMM roofline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--checkpoint", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {arguments.threads} threads, torch {torch.__version__}, checkpoint in {arguments.checkpoint}")
    with tempfile.TemporaryDirectory() as name:
        measure(arguments, Path(name))


if __name__ == "__main__":
    main()
