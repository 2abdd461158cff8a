"""What loads cost those who are being answered, and who waits: `python -m benchmarks.loading`.

Rows decode while cold adapters are fetched from a local store, unpacked and copied to their slots, one after the other
as fast as they come; their time between tokens is compared with that of the same rows left alone, in turns. And the
steps' time until an adapter's first token: cold, from the local disk, from the host, resident.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.base import BaseSpec
from adapters.store import Store
from benchmarks.workload import LINEARS, PROMPT, SHAPE, make_model
from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Event, Limits, Scheduler, Token
from inference.engine.sequence import Sequence
from inference.lora.arena import Arena
from inference.lora.disk import DiskCache
from inference.lora.slots import SlotPool
from inference.lora.source import Loader, Pace
from inference.lora.turns import SHARE
from inference.lora.weights import AdapterWeights
from inference.models.load import load

RANK = 16


def make_adapter(folder: Path, spec: BaseSpec, seed: int, dtype: torch.dtype = torch.float32) -> Path:
    """Random LoRA on all linears but the head, as PEFT saves it."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in spec.linears.items():
        if name.rpartition(".")[2] in LINEARS:
            prefix = f"base_model.model.{name}"
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                tensors[f"{prefix}.lora_{side}.weight"] = (torch.randn(shape, generator=draw) * 0.02).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "target_modules": LINEARS}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


class Bench:
    """An engine on its own thread, whose adapters come from a store. `make` writes the files of one of them."""

    def __init__(
        self,
        folder: Path,
        layers: int,
        adapters: int,
        slots: int,
        make: Callable[[Path, BaseSpec, int], Path] = make_adapter,
        share: float = SHARE,
    ) -> None:
        cpu = torch.device("cpu")
        model = load(str(make_model(folder / "base", layers)), cpu, torch.float32, slots)
        store = Store(f"file://{folder}/store")
        made = (make(folder / f"a{number}", model.spec, number) for number in range(adapters))
        self.digests = [store.put(adapter).digest for adapter in made]
        cache = DiskCache(store, folder / "cache")
        self.loader = Loader(cache, model.spec, model.sites.frozen, cpu, pace=Pace(share=share), busy=self._busy)
        arena = Arena(slots * 40 << 20, cpu, self.loader.fill, self.loader.turns.take)
        self.slots = SlotPool(slots, model.sites, self._load, room=arena)
        limits = Limits(SHAPE["max_position_embeddings"], SHAPE["vocab_size"], 64, 1024)
        self.scheduler = Scheduler(limits, BlockPool(1024, 16), self.slots)
        self.engine = Engine(self.scheduler, Runner(model, 1024, 16), self._deliver)
        self.tokens: list[float] = []
        self._numbers = iter(range(1 << 30))
        self._first = threading.Event()
        self._watched: Sequence | None = None
        self.engine.start()

    def ask(self, digest: str, tokens: int) -> Sequence:
        prompt = torch.randint(0, SHAPE["vocab_size"], (PROMPT,)).tolist()
        number = next(self._numbers)
        sequence = Sequence(number, prompt, Sampling(tokens, temperature=0, ignore_eos=True), digest, salt=str(number))
        self.engine.submit(sequence)
        return sequence

    def gaps(self, rows: int, seconds: float, cold: list[str]) -> list[float]:
        """The times between tokens of `rows` running rows, until all these adapters are there; if none, for a while."""
        running = [self.ask("", SHAPE["max_position_embeddings"] - PROMPT) for _ in range(rows)]
        time.sleep(2)
        began = time.monotonic()
        brought = [self.engine.ask(partial(self.slots.bring, digest)) for digest in cold]
        for future in brought:
            future.result().result(60)
        if not cold:
            time.sleep(seconds)
        ended = time.monotonic()
        for sequence in running:
            self.engine.cancel(sequence)
        steps = sorted({at for at in self.tokens if began <= at <= ended})
        return [later - earlier for earlier, later in pairwise(steps)]

    def first_token(self, digest: str) -> float:
        """Seconds until the first token of a request that is alone."""
        self._first.clear()
        started = time.monotonic()
        self._watched = self.ask(digest, 1)
        self._first.wait(60)
        return time.monotonic() - started

    def forget(self, digest: str, *, host: bool = False) -> None:
        self.engine.ask(lambda: self.slots.evict(digest)).result(60)
        if host:
            self.loader.host.pop(digest)

    def _busy(self) -> bool:
        return bool(self.scheduler.running)

    def _load(self, digest: str) -> Future[AdapterWeights]:
        future = self.loader.load(digest)
        future.add_done_callback(lambda _: self.engine.wake())
        return future

    def _deliver(self, events: list[Event]) -> None:
        now = time.monotonic()
        for event in events:
            if isinstance(event, Token):
                self.tokens.append(now)
                if event.sequence is self._watched:
                    self._first.set()


def p95(gaps: list[float]) -> float:
    return statistics.quantiles(gaps, n=20)[-1]


def measure(bench: Bench, arguments: argparse.Namespace) -> None:
    cold = bench.digests[: arguments.cold]
    gaps: dict[str, list[float]] = {"alone": [], "loading": []}
    for _ in range(arguments.rounds):
        gaps["alone"] += bench.gaps(arguments.rows, arguments.seconds, [])
        gaps["loading"] += bench.gaps(arguments.rows, arguments.seconds, cold)
        for digest in cold:
            bench.forget(digest)
            bench.loader.drop(digest)
    print(f"{arguments.rows} rows, {arguments.cold} cold adapters, {arguments.rounds} rounds; ms between tokens")
    print("          steps  median    p95")
    for name, found in gaps.items():
        print(f"{name:8} {len(found):6} {1e3 * statistics.median(found):7.1f} {1e3 * p95(found):6.1f}")
    print(f"p95 while loading: {p95(gaps['loading']) / p95(gaps['alone']):.2f} of alone")
    for name, seconds in first_tokens(bench, bench.digests[-1]):
        print(f"first token, adapter {name:12} {1e3 * seconds:8.1f} ms")


def first_tokens(bench: Bench, digest: str) -> Iterator[tuple[str, float]]:
    bench.first_token("")
    yield "in the store", bench.first_token(digest)
    for name, host in (("on the disk", True), ("on the host", False)):
        times = []
        for _ in range(5):
            bench.forget(digest, host=host)
            times.append(bench.first_token(digest))
        yield name, statistics.median(times)
    yield "resident", statistics.median(bench.first_token(digest) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--cold", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0, help="that a round looks at rows alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--share", type=float, default=SHARE, help="of the time that loads may work beside rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="loading-") as folder:
        bench = Bench(Path(folder), arguments.layers, arguments.cold + 1, arguments.cold + 2, share=arguments.share)
        measure(bench, arguments)
        bench.engine.stop()


if __name__ == "__main__":
    main()
