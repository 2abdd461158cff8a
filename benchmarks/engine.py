"""Decoding and prefill with the engine and with its peers: `python -m benchmarks.engine`.

The reference workload: a randomly initialised model of Qwen2-0.5B's shape with 32,000 tokens of vocabulary; adapters
of rank 16 on all seven linears; prompts of 64 tokens; greedy, end of sequence ignored. Peers, in float32, are
Transformers' `generate` and its continuous batching, PEFT's mixed batch (`adapter_names`) and one request after the
other, and llama.cpp's server, if `--llama-server` says where it is. All take turns; figures are medians of rounds, a
round the median of its steps. A step's time is what all rows wait for their next token. The roofline is the larger of
what the weights take to be read and the multiply-adds to be done at the rate of a 2048 x 2048 GEMM.

`--checkpoint bfloat16` rounds the model's weights to bfloat16, as most published ones are: peers and ours then compute
in float32 on the same widened numbers, which ours reads as they are kept.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from benchmarks import llama_cpp
from benchmarks.peers import Peer
from benchmarks.workload import PROMPT, SHAPE, gaps, make_model, medians, multiplying, narrowed, reading
from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Event, Limits, Scheduler
from inference.engine.sequence import Sequence
from inference.kernels.linear import Linears
from inference.lora.arena import Arena
from inference.lora.linear import LoraLinear, Siblings
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights, read
from inference.memory import expected
from inference.models.load import Model, load

STEP_TOKENS = 512  # the server's default


class Ours:
    """The engine without a server: the same scheduler, pools and runner, stepped here. `clock`: of decoding steps."""

    def __init__(self, base: Path, folders: list[Path], clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        slots = max(1, len(folders))
        self.model: Model = load(str(base), torch.device("cpu"), torch.float32, slots)
        self._folders = folders
        room = Arena(expected(self.model.spec, slots, self.model.dtype), self.model.device)
        self._slots = SlotPool(slots, self.model.sites, self._load, room=room)
        limits = Limits(2048, SHAPE["vocab_size"], 64, STEP_TOKENS)
        self._scheduler = Scheduler(limits, BlockPool(1024, 16), self._slots)
        self._engine = Engine(self._scheduler, Runner(self.model, 1024, 16), self._ignore)
        self._number = 0

    def step(self, rows: int, tokens: int, adapters: range) -> float:
        """Seconds a step: the median of `tokens` steps in which all rows decode. No adapters: the base alone."""
        self._submit(rows, PROMPT, tokens + 8, adapters)
        while len(self._scheduler.running) < rows or any(s.remaining > 1 for s in self._scheduler.running):
            self._engine.step()
        times = [self._clock()]
        for _ in range(tokens):
            self._engine.step()
            times.append(self._clock())
        self._cancel()
        return gaps(times)

    def prefill(self, rows: int, length: int, adapters: range = range(0)) -> float:
        """Seconds until `rows` prompts of `length` tokens each have their first token."""
        self._submit(rows, length, 1, adapters)
        started = time.perf_counter()
        while self._engine.step():
            pass
        return time.perf_counter() - started

    @property
    def weight_bytes(self) -> int:
        """Of all linears, as the kernels read them in a step."""
        modules = [m for m in self.model.network.modules() if isinstance(m, LoraLinear) and m.siblings is not None]
        groups = {m.siblings.linears for m in modules if m.siblings is not None}
        return sum(packed.panels.nbytes for one in groups if isinstance(one, Linears) for packed, _ in one.parts)

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


Candidates = dict[str, Callable[[], float]]
TARGETS = {
    (1, "ours, base", "generate"): 2.0,
    (8, "ours, base", "generate"): 2.3,
    (32, "ours, base", "generate"): 1.7,
    (32, "ours, products alone", "own base"): 0.8,
    (8, "ours, all distinct", "PEFT, mixed"): 4.5,
    (8, "ours, all distinct", "llama.cpp f16, distinct"): 2.5,
    (32, "ours, all distinct", "PEFT, mixed"): 4.5,
    (32, "ours, all distinct", "llama.cpp q8_0, distinct"): 3.0,
    (32, "ours, all distinct", "own base"): 0.85,
    (32, "ours, all distinct, bfloat16", "own base"): 0.88,
    (32, "ours, 4 adapters", "own base"): 0.95,
    (32, "ours, adapters idle", "own base"): 0.99,
}
"""What a row of the table is to reach against another."""


class Bench:
    """The reference model at hand of everyone who takes part."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        base = make_model(folder / "base", arguments.layers, getattr(torch, arguments.checkpoint))
        most = max(arguments.rows)
        self.most = most
        self.plain, self.peft = Peer(base, folder, 0), Peer(base, folder / "adapters", most)
        self.ours = Ours(base, [*self.peft.folders, *narrowed(self.peft.folders, folder / "narrow")])
        self.servers: dict[str, llama_cpp.LlamaServer] = {}
        if arguments.llama_server:
            for kind in ("F32", "F16", "Q8_0"):
                self.servers[kind.lower()] = self._llama(arguments, base, folder / kind, kind, stack)

    def _llama(
        self, arguments: argparse.Namespace, base: Path, into: Path, kind: str, stack: ExitStack
    ) -> llama_cpp.LlamaServer:
        into.mkdir()
        model = llama_cpp.write_base(base, into / "base.gguf", kind)
        adapters = [llama_cpp.write_adapter(one, into / f"{one.name}.gguf") for one in self.peft.folders]
        vocabulary = SHAPE["vocab_size"]
        return stack.enter_context(
            llama_cpp.serving(arguments.llama_server, model, adapters, self.most, arguments.threads, vocabulary)
        )

    def candidates(self, rows: int, tokens: int) -> Candidates:
        """In an order in which the adapters are there when they are to be idle, and gone when the base is alone."""
        ours = self.ours

        def alone() -> float:
            ours.unload()
            return ours.step(rows, tokens, range(0))

        found: Candidates = {
            "generate": partial(self.plain.step, rows, tokens),
            "continuous batching": partial(self.plain.continuous, rows, tokens),
            "PEFT, mixed": partial(self.peft.step, rows, tokens),
            "PEFT, one after the other": partial(self.peft.switching, rows, tokens),
            "ours, base": alone,
            "ours, products alone": partial(ours.products, rows),
            "ours, all distinct": partial(ours.step, rows, tokens, range(rows)),
            "ours, adapters idle": partial(ours.step, rows, tokens, range(0)),
            "ours, 4 adapters": partial(ours.step, rows, tokens, range(min(4, rows))),
            "ours, all distinct, bfloat16": partial(ours.step, rows, tokens, range(self.most, self.most + rows)),
        }
        for kind, server in self.servers.items():
            found[f"llama.cpp {kind}"] = partial(server.step, rows, tokens)
            found[f"llama.cpp {kind}, distinct"] = partial(server.step, rows, tokens, distinct=True)
        return found

    def roofline(self, rows: int) -> float:
        """Seconds that a step of the base can't be under: its weights read, or its multiply-adds done."""
        numbers = sum(outputs * inputs for outputs, inputs in self.ours.model.spec.linears.values())
        return max(self.ours.weight_bytes / reading(), rows * numbers / multiplying())


def measure(arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
    bench = Bench(arguments, folder, stack)
    if not bench.servers:
        print("llama.cpp's server is left out: --llama-server does not say where it is")
    print("| rows | what | ms/step | tok/s | against |\n|---|---|---|---|---|")
    for rows in arguments.rows:
        decode(rows, medians(bench.candidates(rows, arguments.tokens), arguments.rounds), bench.roofline(rows))
    prefill(arguments, bench.plain, bench.ours)


def decode(rows: int, found: dict[str, float], roofline: float) -> None:
    """The lines of one number of rows."""
    print(f"| {rows} | roofline of the base | {1e3 * roofline:.1f} | {rows / roofline:.1f} | |")
    for name, seconds in found.items():
        against = [ratio(rows, name, peer, found) for peer in ("own base", *found) if name.startswith("our")]
        told = ", ".join(filter(None, against))
        print(f"| {rows} | {name} | {1e3 * seconds:.1f} | {rows / seconds:.1f} | {told} |", flush=True)


def ratio(rows: int, name: str, peer: str, found: dict[str, float]) -> str:
    """How one stands against another: always beside the nearest peer, and wherever there is a target."""
    target = TARGETS.get((rows, name, peer))
    nearest = "generate" if name == "ours, base" else "own base"
    if target is None and (peer != nearest or name == peer):
        return ""
    if peer == "own base":
        own = found["ours, base"]
        value = found[name] / own if name == "ours, products alone" else own / found[name]
    elif peer in found:
        value = found[peer] / found[name]
    else:
        return ""
    verdict = "" if target is None else f" ({'met' if value >= target else 'missed'}: {target})"
    return f"{value:.2f} of own base{verdict}" if peer == "own base" else f"{value:.2f} x {peer}{verdict}"


def prefill(arguments: argparse.Namespace, plain: Peer, ours: Ours) -> None:
    """8 prompts of 512 tokens, against Transformers and against the same multiply-adds as one large GEMM each."""
    rows, length = 8, 512
    numbers = sum(outputs * inputs for name, (outputs, inputs) in ours.model.spec.linears.items() if "layers" in name)
    found = medians(
        {
            "transformers": partial(plain.prefill, rows, length),
            "ours": partial(ours.prefill, rows, length),
            "GEMM of 2048 x 2048": lambda: numbers * rows * length / multiplying(),
        },
        arguments.rounds,
    )
    print(f"\nprefill of {rows} x {length} tokens, seconds: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    reached = found["GEMM of 2048 x 2048"] / found["ours"]
    print(
        f"ours: {found['transformers'] / found['ours']:.2f} x transformers, {reached:.2f} of the GEMM roofline", end=""
    )
    print(f" ({'met' if reached >= 0.8 else 'missed'}: 0.8)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--checkpoint", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--llama-server", help="llama.cpp's program, with options; the package gguf writes its files")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {arguments.threads} threads, torch {torch.__version__}, checkpoint in {arguments.checkpoint}")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        measure(arguments, Path(name), stack)


if __name__ == "__main__":
    main()
