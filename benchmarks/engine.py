"""Decoding with the engine and with its peers: `python -m benchmarks.engine`.

The reference workload: a randomly initialised model of Qwen2-0.5B's shape with 32,000 tokens of vocabulary, float32;
adapters of rank 16 on all seven linears; prompts of 64 tokens; greedy, end of sequence ignored. Peers are Transformers'
`generate` on the same rows, and PEFT's mixed batch (`adapter_names`). Ours and the peers take turns; figures are
medians of rounds. A step's time is what all rows wait for their next token.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Event, Limits, Scheduler
from inference.engine.sequence import Sequence
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights, read
from inference.models.load import Model, load

PROMPT = 64
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


def make_model(folder: Path, layers: int) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen2", **{**SHAPE, "num_hidden_layers": layers})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
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
        """Seconds a step, over `tokens` steps after the first."""
        ids = torch.randint(0, SHAPE["vocab_size"], (rows, PROMPT))
        mixed = {"adapter_names": [f"a{row % len(self.folders)}" for row in range(rows)]} if self.folders else {}
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, **mixed}
        times = []
        for most in (1, 1 + tokens):
            started = time.perf_counter()
            self._model.generate(ids, max_new_tokens=most, min_new_tokens=most, pad_token_id=0, **options)
            times.append(time.perf_counter() - started)
        return (times[1] - times[0]) / tokens


class Ours:
    """The engine without a server: the same scheduler, pools and runner, stepped here."""

    def __init__(self, base: Path, folders: list[Path]) -> None:
        self._model: Model = load(str(base), torch.device("cpu"), torch.float32, max(1, len(folders)))
        self._folders = folders
        self._slots = SlotPool(max(1, len(folders)), self._model.sites, self._load)
        limits = Limits(2048, SHAPE["vocab_size"], 64, 4096)
        self._scheduler = Scheduler(limits, BlockPool(1024, 16), self._slots)
        self._engine = Engine(self._scheduler, Runner(self._model, 1024, 16), self._ignore)
        self._number = 0

    def step(self, rows: int, tokens: int, adapters: int) -> float:
        """Seconds a step, over `tokens` steps in which all rows decode; `adapters` 0 is the base alone."""
        for row in range(rows):
            self._number += 1
            prompt = torch.randint(0, SHAPE["vocab_size"], (PROMPT,)).tolist()
            sampling = Sampling(tokens + 8, temperature=0, ignore_eos=True)
            self._engine.submit(Sequence(self._number, prompt, sampling, str(row % adapters) if adapters else ""))
        while len(self._scheduler.running) < rows or any(s.remaining > 1 for s in self._scheduler.running):
            self._engine.step()
        started = time.perf_counter()
        for _ in range(tokens):
            self._engine.step()
        taken = (time.perf_counter() - started) / tokens
        for sequence in list(self._scheduler.live):
            self._scheduler.cancel(sequence)
        return taken

    def _load(self, digest: str) -> Future[AdapterWeights]:
        future: Future[AdapterWeights] = Future()
        model = self._model
        future.set_result(read(self._folders[int(digest)], model.spec, model.device, model.sites.frozen))
        return future

    def _ignore(self, events: list[Event]) -> None:
        """Nobody listens."""


def medians(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Candidates take turns; the median of each."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            taken[name].append(run())
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    base = make_model(folder / "base", arguments.layers)
    most = max(arguments.rows)
    plain, peft = Peer(base, folder, 0), Peer(base, folder / "adapters", most)
    ours = Ours(base, peft.folders)
    print("rows  what                         ms/step   tok/s  against")
    for rows in arguments.rows:
        found = medians(
            {
                "transformers.generate": partial(plain.step, rows, arguments.tokens),
                "PEFT, mixed batch": partial(peft.step, rows, arguments.tokens),
                "ours, base": partial(ours.step, rows, arguments.tokens, 0),
                "ours, 4 adapters": partial(ours.step, rows, arguments.tokens, min(4, rows)),
                "ours, all distinct": partial(ours.step, rows, arguments.tokens, rows),
            },
            arguments.rounds,
        )
        for name, seconds in found.items():
            against = ""
            if name == "ours, base":
                against = f"{found['transformers.generate'] / seconds:.2f} x transformers.generate"
            elif name.startswith("ours"):
                own, peer = found["ours, base"] / seconds, found["PEFT, mixed batch"] / seconds
                against = f"{own:.2f} of own base, {peer:.2f} x PEFT's mixed batch"
            print(f"{rows:4}  {name:26} {1e3 * seconds:9.1f} {rows / seconds:7.1f}  {against}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        measure(arguments, Path(name))


if __name__ == "__main__":
    main()
