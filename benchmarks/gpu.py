"""Decoding on a GPU, on Llama-3.1-8B's shape: `python -m benchmarks.gpu`. Needs one with 64 GiB free.

bfloat16, random weights, adapters of rank 16 on all seven linears unless said, greedy. Figures are medians of steps in
which all rows decode, from PROMPT tokens of context on. "graph" is the part of a step that is replayed, timed on the
device; the rest is Python's, the copies' and the sampler's. The roofline is the time to read what a step must read
(weights, keys and values, and the adapters in use) at the rate of a large copy on this device, bytes read and written
counted: a batch may hide what it multiplies, not what it reads.

Then the LoRA part of every group of linears alone (`benchmarks.gpu_kernels`).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adapters.base import specify
from benchmarks import gpu_kernels
from benchmarks.kernels import row
from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.graphs import Record
from inference.engine.runner import Runner
from inference.engine.scheduler import Event, Limits, Scheduler
from inference.engine.sequence import Sequence as Request
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights
from inference.models import attention
from inference.models.load import equip

PROMPT = 128
RANKS = (8, 16, 32, 64)
LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "tie_word_embeddings": False,
}
TARGETS = {"adapters loaded, none used": 0.99, "all distinct": 0.93, "ranks 8 to 64": 0.90}  # of own base


@dataclass(frozen=True)
class Case:
    """What the rows of a batch use; `digests` and `loaded` name adapters as rank:number, "" the base."""

    name: str
    digests: Sequence[str] = ("",)
    loaded: Sequence[str] = ()
    replayed: bool = True


def cases(rows: int) -> list[Case]:
    distinct = [f"16:{number}" for number in range(rows)]
    return [
        Case("base"),
        Case("adapters loaded, none used", loaded=distinct),
        Case("one adapter", distinct[:1]),
        Case("all distinct", distinct),
        Case("ranks 8 to 64", [f"{RANKS[number % len(RANKS)]}:{number}" for number in range(rows)]),
        Case("base, no graphs", replayed=False),
        Case("all distinct, no graphs", distinct, replayed=False),
    ]


@dataclass(frozen=True)
class Figures:
    """Seconds of a step, and of what is replayed of it (0: nothing); bytes that it must read."""

    step: float
    graph: float
    bytes: int


class Bench:
    """The engine without a server on a randomly initialised model, with slots for `rows` adapters."""

    def __init__(
        self,
        shape: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        rows: int,
        tokens: int,
        record: Record | None = None,
    ) -> None:
        torch.manual_seed(0)
        builder: Any = AutoModelForCausalLM
        with torch.device(device):
            config = AutoConfig.for_model("llama", **shape)
            network = builder.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
        self.spec = specify(network)
        self.model = equip(network, self.spec, device, dtype, rows)
        self.slots = SlotPool(rows, self.model.sites, self._load)
        blocks = rows * -(-(PROMPT + 2 * tokens + 16) // 16)
        limits = Limits(self.spec.context_length, self.spec.vocab_size, rows, max(4096, rows))
        self.scheduler = Scheduler(limits, BlockPool(blocks, 16), self.slots)
        self.runner = Runner(self.model, blocks, 16)
        started = time.perf_counter()
        self.runner.record(rows, self.scheduler.context, record)
        self.recording = time.perf_counter() - started
        self.events: list[Event] = []
        self._tokens = tokens
        self._engine = Engine(self.scheduler, self.runner, self.events.extend)
        self._number = 0

    def measure(self, case: Case, rows: int) -> Figures:
        """The medians of a case with `rows` rows."""
        self._settle(case)
        graphs = self.runner.graphs
        if not case.replayed:
            self.runner.graphs = None
        for number in range(rows):
            self.submit(case.digests[number % len(case.digests)], 2 * self._tokens + 8)
        running = self.scheduler.running
        while len(running) < rows or any(sequence.remaining > 1 for sequence in running):
            self._engine.step()
        times = [_timed(self._engine.step) for _ in range(self._tokens + 3)][3:]
        last = None if self.runner.graphs is None else self.runner.graphs.last
        graph = 0.0 if last is None else gpu_kernels.seconds(last, self._tokens)
        read = self._bytes(case, rows, sum(sequence.computed for sequence in running))
        for sequence in list(self.scheduler.live):
            self.scheduler.cancel(sequence)
        self.runner.graphs = graphs
        return Figures(statistics.median(times), graph, read)

    def submit(self, digest: str, tokens: int) -> Request:
        self._number += 1
        prompt = torch.randint(0, self.spec.vocab_size, (PROMPT,)).tolist()
        request = Request(self._number, prompt, Sampling(tokens, temperature=0, ignore_eos=True), digest)
        self._engine.submit(request)
        return request

    def run(self) -> None:
        """Until everything that was submitted has ended."""
        while self._engine.step():
            pass

    def _settle(self, case: Case) -> None:
        """Empty the slots, and load what shall be resident."""
        for slot in list(self.slots.occupied()):
            self.slots.evict(slot.digest)
        for digest in case.loaded:
            self.slots.bring(digest)
        self._engine.step()

    def _load(self, digest: str) -> Future[AdapterWeights]:
        """An adapter on every linear but the head, of random numbers that are always the same for a digest."""
        rank = _rank(digest)
        random = torch.Generator(self.model.device).manual_seed(sum(digest.encode()))

        def drawn(outputs: int, inputs: int) -> Tensor:
            numbers = torch.empty(outputs, inputs, dtype=self.model.dtype, device=self.model.device)
            return numbers.normal_(std=inputs**-0.5, generator=random)

        linears = {name: shape for name, shape in self.spec.linears.items() if name != self.spec.head}
        pairs = {name: (drawn(rank, ins), drawn(outs, rank), 1.0) for name, (outs, ins) in linears.items()}
        future: Future[AdapterWeights] = Future()
        future.set_result(AdapterWeights(pairs, sum(a.nbytes + b.nbytes for a, b, _ in pairs.values())))
        return future

    def _bytes(self, case: Case, rows: int, context: int) -> int:
        """Weights, the pairs of the adapters in use, and the context's keys and values, once."""
        sizes = [shape for name, shape in self.spec.linears.items() if name != self.spec.head]
        weights = sum(outputs * inputs for outputs, inputs in self.spec.linears.values())
        used = {digest for digest in case.digests[:rows] if digest}
        pairs = sum(map(_rank, used)) * sum(outs + ins for outs, ins in sizes)
        return (weights + pairs + context * self.model.cache.numbers_per_token) * self.model.dtype.itemsize


def _rank(digest: str) -> int:
    return int(digest.partition(":")[0])


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy of `size` bytes reads and writes."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / gpu_kernels.seconds(lambda: target.copy_(source), 10)


def table(bench: Bench, rows: Sequence[int], rate: float) -> None:
    """A line for each case; rates against the roofline and against the base with as many rows."""
    row("rows", "what", "step, ms", "tok/s", "graph, ms", "roofline, ms", "roofline / step", "of own base", "target")
    row(*["---"] * 9)
    for count in rows:
        found = {case.name: bench.measure(case, count) for case in cases(count)}
        for name, figures in found.items():
            floor, base = figures.bytes / rate, found["base"].step
            timed = (f"{1e3 * figures.step:.2f}", f"{count / figures.step:.0f}", f"{1e3 * figures.graph:.2f}")
            target = "roofline 0.75" if (name, count) == ("base", 32) else TARGETS.get(name, "")
            against = (f"{floor / figures.step:.2f}", f"{base / figures.step:.3f}")
            row(count, name, *timed, f"{1e3 * floor:.2f}", *against, target)
        share = found["one adapter"].step / found["all distinct"].step
        print(f"\n{count} rows: all distinct / one adapter {share:.3f} (target 0.98)\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--tokens", type=int, default=40, help="steps timed for each case")
    parser.add_argument("--layers", type=int, default=LLAMA_8B["num_hidden_layers"])
    parser.add_argument("--only", choices=["engine", "kernels"])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a CUDA device, and torch sees none here.")
    device = torch.device("cuda")
    rate = bandwidth(device, 4 << 30)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies at {rate / 1e12:.2f} TB/s\n", flush=True)
    if options.only != "kernels":
        shape = LLAMA_8B | {"num_hidden_layers": options.layers}
        bench = Bench(shape, device, torch.bfloat16, max(options.rows), options.tokens)
        print(f"decode steps recorded in {bench.recording:.0f} s\n", flush=True)
        table(bench, options.rows, rate)
    if options.only != "engine":
        with torch.inference_mode():
            gpu_kernels.table(options.rows, device, torch.bfloat16)


if __name__ == "__main__":
    main()
