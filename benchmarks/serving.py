"""What the engine keeps of its speed for those whom others could disturb: `python -m benchmarks.serving`.

The reference workload's model with rank-16 adapters in bfloat16, 16 slots, 32 rows in a step, 512 tokens in a step
(production's default); prompts of 32 tokens where nothing else is said. Each candidate of a line starts with empty
slots, they take turns, and figures are medians of rounds. Adapters have been used before: what is in no slot comes from
the host's memory, or with `--disk` from the local disk. What loads do to running rows is in `benchmarks.loading`.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from adapters.base import BaseSpec
from benchmarks.loading import Bench, make_adapter, p95
from benchmarks.scheduling import zipf
from benchmarks.workload import SHAPE, medians
from inference.client import Sampling
from inference.engine.scheduler import Ended, Event, Token
from inference.engine.sequence import Sequence

ADAPTERS, SLOTS, ROWS, BATCH = 200, 16, 32, 512
FILES = 8  # of tensors; the other adapters share them and differ by their configuration
SYSTEM, PROMPT = 1000, 32  # tokens
BACKLOG = 16  # requests that wait while ROWS run
QUEUED = 500
CROWD = "crowd"  # the share of those who ask again and again

Request = tuple[str, int]  # the adapter's digest, and how many tokens are asked for


def make_variant(folder: Path, spec: BaseSpec, number: int) -> Path:
    """An adapter with a digest of its own, though it has the tensors of one of the first FILES."""
    original = folder.with_name(f"a{number % FILES}")
    if number < FILES:
        return make_adapter(folder, spec, number, torch.bfloat16)
    folder.mkdir()
    os.link(original / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((original / "adapter_config.json").read_text())
    config["lora_alpha"] += number // FILES
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class Mark:
    """A moment between two steps, and what had been done by then: tokens computed, steps, requests of the crowd."""

    at: float
    tokens: int
    steps: int
    asked: int


class Traffic(Bench):
    """A bench whose requests are timed, and where a crowd of clients asks again as soon as it was answered."""

    def __init__(self, folder: Path, layers: int) -> None:
        self.draw = random.Random(0)  # noqa: S311
        self.firsts: list[Future[float]] = []  # of the crowd, in the order in which it asked
        self._ended = 0
        self._error: Exception | None = None
        self._timed: dict[Sequence, tuple[float, Future[float]]] = {}
        self._requests: Iterator[Request] | None = None
        super().__init__(folder, layers, ADAPTERS, SLOTS, make_variant)
        self.scheduler.limits = replace(self.scheduler.limits, rows=ROWS, batch_tokens=BATCH)

    def prompt(self, tokens: int) -> list[int]:
        return [self.draw.randrange(SHAPE["vocab_size"]) for _ in range(tokens)]

    def send(self, prompt: list[int], tokens: int, digest: str, share: str = "", salt: str = "") -> Future[float]:
        """Ask; the future has the seconds until the first token. Prompts are shared where a salt is."""
        number = next(self._numbers)
        sampling = Sampling(tokens, temperature=0, ignore_eos=True)
        sequence = Sequence(number, prompt, sampling, digest, share, salt=salt or str(number))
        first: Future[float] = Future()
        self._timed[sequence] = time.monotonic(), first
        self.engine.submit(sequence)
        return first

    @contextmanager
    def crowd(self, clients: int, requests: Iterable[Request], settled: int) -> Iterator[None]:
        """So many clients, whose next request is always the next of `requests`, from when `settled` were answered."""
        self.engine.ask(partial(self._gather, clients, iter(requests))).result()
        try:
            while self._ended < settled:
                time.sleep(0.005)
                self._check()
            yield
            self._check()
        finally:
            self.engine.ask(self._disperse).result()

    def mark(self) -> Mark:
        engine = self.engine
        return engine.ask(
            lambda: Mark(
                time.monotonic(), engine.prompt_tokens + engine.generated_tokens, engine.steps, len(self.firsts)
            )
        ).result()

    def warm(self, digests: Iterable[str], *, disk: bool) -> None:
        """Have the adapters on the local disk, and unless `disk` on the host too."""
        for digest in digests:
            self.loader.load(digest).result(60)
            if disk:
                self.loader.host.pop(digest)

    def _gather(self, clients: int, requests: Iterator[Request]) -> None:
        self._requests, self._ended = requests, 0
        for _ in range(clients):
            self._ask_on()

    def _disperse(self) -> None:
        self._requests = None
        self._timed.clear()
        for sequence in list(self.scheduler.live):
            self.scheduler.cancel(sequence)
        for slot in list(self.slots.occupied()):
            self.slots.evict(slot.digest)

    def _ask_on(self) -> None:
        if self._requests is not None:
            digest, tokens = next(self._requests)
            self.firsts.append(self.send(self.prompt(PROMPT), tokens, digest, CROWD))

    def _deliver(self, events: list[Event]) -> None:
        super()._deliver(events)
        now = time.monotonic()
        for event in events:
            if isinstance(event, Token) and event.sequence in self._timed:
                asked, first = self._timed.pop(event.sequence)
                first.set_result(now - asked)
            elif isinstance(event, Ended):
                self._error = self._error or event.error
                if event.sequence.share == CROWD and event.error is None:
                    self._ended += 1
                    self._ask_on()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class Line:
    """A promise and what was found."""

    what: str
    found: str
    target: str
    met: bool

    def __str__(self) -> str:
        return f"{self.what:58} {self.found:42} {self.target:14} {'met' if self.met else 'NOT MET'}"


def shared_prompt(traffic: Traffic, rounds: int) -> Line:
    """The time to the first token of the one who brings a system prompt, and of those who come after."""
    digest = traffic.digests[0]
    traffic.send(traffic.prompt(BATCH), 1, digest).result(120)
    first, later = [], []
    for _ in range(rounds):
        system, salt = traffic.prompt(SYSTEM), f"tenant {traffic.draw.random()}"
        waits = [traffic.send(system + traffic.prompt(PROMPT), 1, digest, salt=salt).result(120) for _ in range(4)]
        first.append(waits[0])
        later += waits[1:]
    before, after = statistics.median(first), statistics.median(later)
    found = f"{after:.3f} s / {before:.3f} s = {after / before:.3f}"
    what = f"first token, {SYSTEM:,} shared tokens: later requests / first"
    return Line(what, found, "<= 0.1", after / before <= 0.1)


def throughput(traffic: Traffic, requests: list[Request], seconds: float) -> float:
    """Tokens computed in a second, prompts' and answers', while there are always more requests than rows."""
    with traffic.crowd(ROWS + BACKLOG, itertools.cycle(requests), BACKLOG):
        then = traffic.mark()
        time.sleep(seconds)
        now = traffic.mark()
    return (now.tokens - then.tokens) / (now.at - then.at)


def many_adapters(traffic: Traffic, popular: list[tuple[int, int]], rounds: int, seconds: float) -> Line:
    many = [(traffic.digests[rank], tokens) for rank, tokens in popular]
    few = [(traffic.digests[rank % 5], tokens) for rank, tokens in popular]
    found = medians(
        {"5": partial(throughput, traffic, few, seconds), "200": partial(throughput, traffic, many, seconds)}, rounds
    )
    ratio = found["200"] / found["5"]
    what = f"tokens/s, {ADAPTERS} adapters under Zipf(1) / 5 adapters"
    return Line(what, f"{found['200']:.0f} / {found['5']:.0f} = {ratio:.3f}", ">= 0.95", ratio >= 0.95)


def first_token(traffic: Traffic, adapters: int, seconds: float) -> float:
    """The median time to the first token of 8 clients, who ask for one adapter after the other."""
    requests = ((digest, traffic.draw.randint(4, 12)) for digest in itertools.cycle(traffic.digests[:adapters]))
    with traffic.crowd(8, requests, SLOTS):
        then = traffic.mark()
        time.sleep(seconds)
        asked = traffic.firsts[then.asked : traffic.mark().asked]
        return statistics.median(first.result(60) for first in asked)


def round_robin(traffic: Traffic, rounds: int, seconds: float) -> Line:
    found = medians({str(count): partial(first_token, traffic, count, seconds) for count in (SLOTS, 2 * SLOTS)}, rounds)
    more, fits = found[str(2 * SLOTS)], found[str(SLOTS)]
    what = f"first token, median: {2 * SLOTS} adapters in turn / {SLOTS}"
    return Line(what, f"{more:.3f} s / {fits:.3f} s = {more / fits:.2f}", "<= 2", more / fits <= 2)


def now_and_then(traffic: Traffic, count: int) -> list[float]:
    """The times to the first token of one who asks, and asks again after a pause."""
    waits = []
    for _ in range(count):
        time.sleep(traffic.draw.uniform(0, 0.6))
        waits.append(traffic.send(traffic.prompt(PROMPT), 4, traffic.digests[4], "other").result(120))
    return waits


def one_beside_many(traffic: Traffic, rounds: int, count: int) -> Line:
    """Somebody with a request now and then, alone and while another tenant always has QUEUED requests waiting."""
    crowd = ((digest, traffic.draw.randint(8, 24)) for digest in itertools.cycle(traffic.digests[:4]))
    alone: list[float] = []
    beside: list[float] = []
    steps: list[float] = []
    traffic.send(traffic.prompt(PROMPT), 1, traffic.digests[4]).result(120)
    for _ in range(rounds):
        alone += now_and_then(traffic, count)
        with traffic.crowd(ROWS + QUEUED, crowd, BACKLOG):
            then = traffic.mark()
            beside += now_and_then(traffic, count)
            now = traffic.mark()
        steps.append((now.at - then.at) / (now.steps - then.steps))
    most = 2 * p95(alone) + statistics.median(steps)
    found = f"{p95(beside):.3f} s ({p95(alone):.3f} s alone, step {statistics.median(steps):.3f} s)"
    what = f"first token, p95, beside a tenant with {QUEUED} queued"
    return Line(what, found, f"<= {most:.3f} s", p95(beside) <= most)


def measure(traffic: Traffic, arguments: argparse.Namespace) -> None:
    rank = zipf(traffic.draw, ADAPTERS)
    popular = [(rank(), traffic.draw.randint(4, 28)) for _ in range(arguments.requests)]
    used = {traffic.digests[number] for number, _ in popular} | set(traffic.digests[: 2 * SLOTS])
    rounds, seconds = arguments.rounds, arguments.seconds
    lines: list[Callable[[], Line]] = [
        partial(shared_prompt, traffic, rounds),
        partial(many_adapters, traffic, popular, rounds, seconds),
        partial(round_robin, traffic, rounds, seconds / 2),
        partial(one_beside_many, traffic, rounds, arguments.asks),
    ]
    for line in lines:
        traffic.warm(used, disk=arguments.disk)
        print(line(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of throughput that a round looks at")
    parser.add_argument("--requests", type=int, default=150, help="drawn for the popular adapters, then repeated")
    parser.add_argument("--asks", type=int, default=10, help="a round, of the tenant beside the one with the queue")
    parser.add_argument("--disk", action="store_true", help="adapters wait on the local disk, not on the host")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{platform.processor() or platform.machine()}, {threads} threads, {arguments.layers} layers")
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        started = time.monotonic()
        traffic = Traffic(Path(folder), arguments.layers)
        measure(traffic, arguments)
        traffic.engine.stop()
        traffic.loader.close()
        print(f"took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
