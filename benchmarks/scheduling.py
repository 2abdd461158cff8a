"""The production scheduler on a simulated engine: `python -m benchmarks.scheduling`.

Events are discrete and time is counted, not waited for: a step takes what a cost model says, a load takes its own time
beside the steps. Traffic is Poisson, bursty or greedy (one tenant floods), over thousands of adapters with Zipf
popularity and hundreds of tenants. Each case runs twice on the same arrivals: fair, and first come first served (which
is what the fair queue does when all requests are one tenant's).

The fairness bound is that of Sheng et al. (OSDI 2024), theorem 4.4: while two tenants are both backlogged, the service
they had differs by at most 2 max(w_p * longest prompt, w_q * tokens that fit in the batch), per unit of weight. The
theorem knows nothing of tenants whose requests all run; since rows are given back, a tenant that waits falls behind
those too by a bounded amount (`arrears`): a quantum, a prompt, and what the batch is given in the least of turns.

`--flood`: a tenant that holds every row and has requests queued, and another that asks now and then.
"""

import argparse
import heapq
import itertools
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.fairness import OUTPUT_COST, PROMPT_COST
from inference.engine.scheduler import Begun, Ended, Limits, Plan, Sampled, Scheduler, Token
from inference.engine.sequence import Sequence
from inference.engine.yielding import QUANTUM, TURN
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights

BLOCK = 16
LOOK = 50  # steps between two looks at who had how much


@dataclass(frozen=True)
class Cost:
    """Seconds: of a step, of each of its tokens, rows and distinct adapters; and of a load.

    The defaults are of the reference workload (a 0.5B model in float32 on two cores); `--fit` finds this machine's.
    """

    step: float = 0.045
    token: float = 0.0055
    row: float = 0.0
    adapter: float = 0.0009
    load: float = 0.05

    def of(self, plan: Plan) -> float:
        return self.step + self.token * plan.tokens + self.row * len(plan.rows) + self.adapter * plan.adapters


@dataclass(frozen=True)
class Arrival:
    at: float
    tenant: str
    adapter: str
    prompt: int
    output: int
    weight: float = 1.0  # of the tenant


@dataclass
class Outcome:
    """first: seconds to the first token, by tenant. gap: of weighted service, the widest between backlogged tenants.

    steps: to the first token, by tenant, the one under way at its arrival included. arrears: the most by which a tenant
    that waited fell behind one that ran or waited. tokens: computed for prompts the first time, and generated.
    """

    first: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    gap: float = 0.0
    bound: float = 0.0
    arrears: float = 0.0
    arrears_bound: float = 0.0
    tokens: int = 0
    yields: int = 0
    finished: int = 0
    seconds: float = 0.0
    loads: int = 0

    def percentile(self, percent: int, tenants: Callable[[str], bool] = lambda _: True) -> float:
        waits = [wait for tenant, all_waits in self.first.items() if tenants(tenant) for wait in all_waits]
        return statistics.quantiles(waits, n=100, method="inclusive")[percent - 1] if len(waits) > 1 else float("nan")


class Simulation:
    """The scheduler, block pool and slot pool of production; the clock, the loads and the tokens are simulated."""

    def __init__(
        self,
        cost: Cost,
        *,
        fair: bool,
        slots: int = 16,
        rows: int = 32,
        tokens: int = 32768,
        quantum: float = QUANTUM,
    ) -> None:
        self._now = 0.0
        self._cost = cost
        self._fair = fair
        self._loading: list[tuple[float, int, Future[AdapterWeights]]] = []
        self._order = itertools.count()
        self._slots = SlotPool(slots, self, self._load, 1.0, self._clock)
        limits = Limits(4096, 10, rows, 512, waiting=10**6, waiting_per_share=10**6, quantum=quantum)
        self._scheduler = Scheduler(limits, BlockPool(tokens // BLOCK, BLOCK), self._slots, clock=self._clock)
        self._arrival: dict[Sequence, Arrival] = {}
        self._waiting_first: dict[Sequence, int] = {}  # by the steps before it
        self._service: dict[str, float] = defaultdict(float)
        self._queued: dict[str, int] = defaultdict(int)
        self._since: dict[str, dict[str, float]] = {}
        self._steps = 0
        self._tokens = tokens

    def install(self, slot: int, weights: AdapterWeights) -> None:
        """Simulated weights need no place."""

    def clear(self, slot: int) -> None:
        """Nor are they anywhere to be cleared from."""

    def run(self, arrivals: list[Arrival]) -> Outcome:
        """Until every request has ended."""
        outcome, coming = Outcome(), 0
        outcome.bound = 2 * max(PROMPT_COST * max(a.prompt for a in arrivals), OUTPUT_COST * self._tokens)
        outcome.bound /= min(a.weight for a in arrivals)
        outcome.arrears_bound = self._arrears_bound(arrivals)
        while coming < len(arrivals) or self._scheduler.live:
            while coming < len(arrivals) and arrivals[coming].at <= self._now:
                self._submit(arrivals[coming])
                coming += 1
            while self._loading and self._loading[0][0] <= self._now:
                heapq.heappop(self._loading)[2].set_result(SIMULATED)
            if not self._step(outcome):
                self._now = self._next(arrivals[coming].at if coming < len(arrivals) else None)
        outcome.seconds, outcome.loads = self._now, self._slots.tally.misses
        outcome.yields = self._scheduler.yields
        return outcome

    def _step(self, outcome: Outcome) -> bool:
        plan = self._scheduler.plan()
        if plan:
            self._now += self._cost.of(plan)
            self._scheduler.commit(plan, [Sampled(1) if row.samples else None for row in plan.rows])
        for event in self._scheduler.take_events():
            self._take(event, outcome)
        self._note_backlogs(outcome)
        return bool(plan)

    def _take(self, event: Any, outcome: Outcome) -> None:
        sequence = event.sequence
        arrival = self._arrival[sequence]
        match event:
            case Begun():
                self._queued[arrival.tenant] -= 1
                self._service[arrival.tenant] += PROMPT_COST * arrival.prompt / arrival.weight
                outcome.tokens += arrival.prompt
            case Token():
                self._service[arrival.tenant] += OUTPUT_COST / arrival.weight
                outcome.tokens += 1
                if sequence in self._waiting_first:
                    outcome.first[arrival.tenant].append(self._now - arrival.at)
                    outcome.steps[arrival.tenant].append(self._steps + 1 - self._waiting_first.pop(sequence))
            case Ended():
                outcome.finished += 1
                del self._arrival[sequence]

    def _note_backlogs(self, outcome: Outcome) -> None:
        """Every LOOK steps: the widest difference of service between two tenants since both have had a queue."""
        for tenant in [tenant for tenant, queued in self._queued.items() if not queued]:
            del self._queued[tenant]
            self._since.pop(tenant, None)
        for tenant in self._queued:
            self._since.setdefault(tenant, dict(self._service))
        self._steps += 1
        if self._steps % LOOK == 0:
            outcome.gap = max([outcome.gap, *self._gaps()])
            outcome.arrears = max([outcome.arrears, *self._arrears()])

    def _gaps(self) -> Iterator[float]:
        tenants = list(self._since)  # in the order in which they became backlogged
        for place, later in enumerate(tenants):
            then = self._since[later]
            mine = self._service[later] - then.get(later, 0.0)
            for earlier in tenants[:place]:
                yield abs(mine - (self._service[earlier] - then.get(earlier, 0.0)))

    def _arrears(self) -> Iterator[float]:
        """How far each tenant that waits is behind each other one, since it began to wait."""
        for tenant, then in self._since.items():
            mine = self._service[tenant] - then.get(tenant, 0.0)
            for other, service in self._service.items():
                yield service - then.get(other, 0.0) - mine

    def _arrears_bound(self, arrivals: list[Arrival]) -> float:
        limits = self._scheduler.limits
        rows = limits.rows * (QUANTUM + OUTPUT_COST * (TURN + 2))
        return (PROMPT_COST * max(a.prompt for a in arrivals) + rows) / min(a.weight for a in arrivals)

    def _submit(self, arrival: Arrival) -> None:
        prompt = [1] * arrival.prompt
        share = arrival.tenant if self._fair else ""
        sampling = Sampling(arrival.output, temperature=0)
        number, salt = next(self._order), str(next(self._order))
        sequence = Sequence(number, prompt, sampling, arrival.adapter, share, arrival.weight, salt)
        self._arrival[sequence] = arrival
        self._waiting_first[sequence] = self._steps - (arrival.at < self._now)
        self._queued[arrival.tenant] += 1
        self._scheduler.add(sequence)

    def _next(self, arrival: float | None) -> float:
        """When something happens that a step could not bring about. A starving adapter's patience is such a thing."""
        times = [at for at, _, _ in self._loading[:1]] + ([arrival] if arrival is not None else [])
        return min([*times, self._now + 0.05]) if self._scheduler.live else min(times)

    def _load(self, digest: str) -> Future[AdapterWeights]:
        future: Future[AdapterWeights] = Future()
        heapq.heappush(self._loading, (self._now + self._cost.load, next(self._order), future))
        return future

    def _clock(self) -> float:
        return self._now


SIMULATED: Any = SimpleNamespace(pairs={}, nbytes=0)


def zipf(draw: random.Random, count: int, alpha: float = 1.0) -> Callable[[], int]:
    """Draws 0..count-1, the n-th with weight (n + 1) ** -alpha."""
    weights = list(itertools.accumulate((n + 1) ** -alpha for n in range(count)))
    return lambda: draw.choices(range(count), cum_weights=weights)[0]


def poisson(draw: random.Random, rate: float) -> Iterator[float]:
    """Arrival times at `rate` a second."""
    at = 0.0
    while True:
        at += draw.expovariate(rate)
        yield at


def bursty(draw: random.Random, rate: float) -> Iterator[float]:
    """The same mean rate, in bursts: gaps are gamma-distributed with a coefficient of variation of 4."""
    at = 0.0
    while True:
        at += draw.gammavariate(1 / 16, 16 / rate)
        yield at


def traffic(shape: str, seed: int, count: int, rate: float, tenants: int, adapters: int) -> list[Arrival]:
    """`count` requests. "greedy": besides a Poisson stream, one tenant sends a quarter of them all at the beginning."""
    draw = random.Random(seed)  # noqa: S311
    adapter, times = zipf(draw, adapters), bursty(draw, rate) if shape == "bursty" else poisson(draw, rate)
    flood = count // 4 if shape == "greedy" else 0

    def one(at: float, number: int) -> Arrival:
        owner = f"t{number % tenants}"
        return Arrival(at, owner, f"{owner}/a{number}", draw.randint(8, 256), draw.randint(8, 128))

    first = [Arrival(0.0, GREEDY, "greedy/a", draw.randint(8, 256), draw.randint(8, 128)) for _ in range(flood)]
    return first + [one(next(times), adapter()) for _ in range(count - flood)]


GREEDY = "greedy"
SAMPLE = 600  # requests that tell the capacity
OVERLOAD = 1.35  # of it: queues grow as long as requests come


def capacity(cost: Cost, arguments: argparse.Namespace) -> float:
    """Requests a second when nobody has to be waited for: all are there at the beginning."""
    crowd = traffic("poisson", arguments.seed, SAMPLE, 1e9, arguments.tenants, arguments.adapters)
    return SAMPLE / Simulation(cost, fair=False, slots=arguments.slots).run(crowd).seconds


def report(cost: Cost, arguments: argparse.Namespace) -> None:
    most = capacity(cost, arguments)
    print(f"{arguments.requests} requests, {arguments.adapters} adapters of {arguments.tenants} tenants, {cost}")
    print(f"saturated at {most:.2f} requests/s")
    print("traffic     load   queue   TTFT p50    p95   others' p95   gap / bound      loads   simulated    took")
    for shape, load in [*((shape, arguments.load) for shape in ("poisson", "bursty", "greedy")), ("poisson", OVERLOAD)]:
        arrivals = traffic(
            shape, arguments.seed, arguments.requests, load * most, arguments.tenants, arguments.adapters
        )
        for fair in (True, False):
            started = time.perf_counter()
            found = Simulation(cost, fair=fair, slots=arguments.slots).run(arrivals)
            assert found.finished == len(arrivals), "a request was lost"
            print(
                f"{shape:9} {load:6.2f}   {'fair' if fair else 'fcfs':6}"
                f" {found.percentile(50):8.2f} s {found.percentile(95):6.1f}"
                f" {found.percentile(95, lambda tenant: tenant != GREEDY):10.1f} s"
                f" {found.gap:9.0f} / {found.bound:.0f} {found.loads:8} {found.seconds:9.0f} s"
                f" {time.perf_counter() - started:7.1f} s"
            )


def flood(cost: Cost, arguments: argparse.Namespace) -> None:
    """What one tenant's first tokens cost beside another that holds every row, and what that costs the whole."""
    draw = random.Random(arguments.seed)  # noqa: S311
    asked = [Arrival(20 + 5 * n + draw.random(), "modest", "modest/a", 64, 16) for n in range(60)]
    print(f"{arguments.queued} requests of one tenant at once, 60 of another's, 5 s apart; {cost}")
    print(
        "rows  the greedy's prompts, answers   modest's steps p50  p95  TTFT p95   arrears / bound   yields   tokens/s"
    )
    for rows, prompts, answers in (
        (64, (8, 256), (300, 900)),
        (64, (500, 2000), (300, 900)),
        (64, (8, 256), (8, 128)),
        (8, (8, 256), (300, 900)),
    ):
        greedy = [
            Arrival(0.0, GREEDY, "greedy/a", draw.randint(*prompts), draw.randint(*answers))
            for _ in range(arguments.queued)
        ]
        for name, arrivals, quantum in (
            ("alone", asked, QUANTUM),
            ("flood", greedy, QUANTUM),
            ("never yields", greedy + asked, math.inf),
            ("yields", greedy + asked, QUANTUM),
        ):
            found = Simulation(cost, fair=True, rows=rows, tokens=2**17, quantum=quantum).run(arrivals)
            steps = sorted(found.steps["modest"]) or [0]
            print(
                f"{rows:4}  {prompts!s:12} {answers!s:12} {name:12}"
                f" {steps[len(steps) // 2]:8} {steps[int(0.95 * (len(steps) - 1))]:4}"
                f" {found.percentile(95, lambda tenant: tenant != GREEDY):9.2f} s"
                f" {found.arrears:9.0f} / {found.arrears_bound:.0f} {found.yields:8}"
                f" {found.tokens / found.seconds:9.1f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--load", type=float, default=0.7, help="mean arrival rate, as a part of the capacity")
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    default = Cost()
    names = [constant.name for constant in fields(Cost)]
    for name in names:
        parser.add_argument(f"--{name}-ms", type=float, default=1e3 * getattr(default, name))
    parser.add_argument("--flood", action="store_true", help="one tenant that holds every row, and another")
    parser.add_argument("--queued", type=int, default=1500, help="requests of the tenant that floods")
    parser.add_argument("--fit", action="store_true", help="measure this machine's steps and simulate with them")
    parser.add_argument("--layers", type=int, default=24, help="of the model that --fit measures")
    parser.add_argument("--rounds", type=int, default=3, help="in which --fit measures each case")
    arguments = parser.parse_args()
    cost = Cost(**{name: getattr(arguments, f"{name}_ms") / 1e3 for name in names})
    if arguments.fit:
        from benchmarks.fitting import fit  # torch and a model, which a simulation does without

        found = fit(arguments.layers, arguments.rounds)
        cost = replace(cost, **found)
        print("fitted: " + " ".join(f"--{name}-ms {1e3 * seconds:.4g}" for name, seconds in found.items()), flush=True)
    (flood if arguments.flood else report)(cost, arguments)


if __name__ == "__main__":
    main()
