"""Thousands of simulated rollouts that production's code decides: `python -m benchmarks.rollouts`.

Each runs through STEPS; a step asks for SAMPLES requests of the canary, and every tick brings about TICK of them and
what stable has meanwhile, both Poisson. Ten guardrails are enforced, with their default margins where nothing else is
said. A step without success or failure after PATIENCE times its samples pauses the rollout. Stable: 1 % errors, 0.5 %
empty answers, 10 % cut, 1 % repetitive, 2 % refused, 2 % of the structured half invalid, 20 % of thumbs down (5 % of
requests have one); lognormal times to the first token (sigma 0.6), gaps (0.3) and lengths (0.8).

Requests are independent, but where units send about ten each (exponentially distributed, like each unit's own error
rate; speeds of their own, sigma 0.3), where the canary has a few such units in all and stable as many more as it has
weight, or where 3 % of the ticks are incidents that fail 30 % of all requests. Where a canary hangs, the clients leave
after ten seconds without a token. An evaluation's lines pass or don't, independently in both arms. The split of the
units is simulated apart from the rest. "Exposed" is the median of the canary's requests until its end.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

sys.path.append(str(Path(__file__).parents[1] / "platform"))

from evaluations.intervals import proportion
from rollouts.verdicts import Guardrail, Kind, Metric, Score, Window, decide
from rollouts.windows import BINS, BUCKETS, LOWEST, OCTAVE, SHARES, VALUES, Tally, bin_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STEPS = (100, 500, 1000, 2500, 5000)  # of 10,000
SAMPLES = 400
TICK = 40
PATIENCE = 10
RAILS = tuple(Guardrail.of(metric) for metric in (*SHARES, *VALUES))
USUAL = {
    Metric.ERRORS: 0.01,
    Metric.EMPTY: 0.005,
    Metric.CUT: 0.1,
    Metric.REPETITION: 0.01,
    Metric.REFUSALS: 0.02,
    Metric.SCHEMA: 0.02,
    Metric.THUMBS: 0.2,
}
MEASURED = {Metric.SCHEMA: 0.5, Metric.THUMBS: 0.05}  # of the requests; of all where nothing is said
SPREAD = {Metric.FIRST_TOKEN: (-1.0, 0.6), Metric.INTER_TOKEN: (-3.0, 0.3), Metric.LENGTH: (5.0, 0.8)}
INCIDENT, INCIDENTS = 0.3, 0.03  # errors in one, and how many ticks are one
LEAVE = 10.0  # seconds that a client waits


@dataclass(frozen=True)
class World:
    """errors, slower: the canary's error rate and times, slower only above stable's quantile `above`.

    hangs: the share of the canary's requests that are never answered. per_unit: requests of a unit; 0: each is of a
    unit of its own. pool: the canary's units; 0: new ones come. incidents: some ticks fail in both arms. lines, passes:
    of an evaluation, and how many of them stable and the canary pass.
    """

    errors: float = USUAL[Metric.ERRORS]
    slower: float = 1.0
    above: float = 0.0
    hangs: float = 0.0
    per_unit: int = 0
    pool: int = 0
    incidents: bool = False
    lines: int = 0
    passes: tuple[float, float] = (0.9, 0.9)
    rails: Sequence[Guardrail] = RAILS
    steps: Sequence[int] = STEPS
    stable_share: float = 1.0  # of the usual traffic
    canary_share: float = 1.0

    def tightened(self, *metrics: Metric) -> "World":
        """Without margins, where harmless means no worse at all; and with the guardrails of these metrics, if any."""
        rails = [replace(rail, margin=0.0) for rail in self.rails if not metrics or rail.metric in metrics]
        return replace(self, rails=rails)

    def scores(self, draw: np.random.Generator) -> list[Score | None]:
        """Stable's and the canary's, if there is an evaluation."""
        passed = [int(draw.binomial(self.lines, share)) for share in self.passes] if self.lines else []
        known = [proportion(count, self.lines) for count in passed]
        return [Score(one.mean, one.low, one.high, one.n) for one in known] or [None, None]


@dataclass(frozen=True)
class Ending:
    """weight, exposed: when it ended, and how many requests the canary had by then, in all steps."""

    kind: Kind
    weight: int
    exposed: int


def roll(world: World, draw: np.random.Generator) -> Ending:
    """One rollout. INCONCLUSIVE is one that paused."""
    exposed, scores = 0, world.scores(draw)
    for weight in world.steps:
        arms = Arm(world, draw, weight, is_canary=False), Arm(world, draw, weight, is_canary=True)
        (stable, canary), look = (Window().scored(score) for score in scores), 0
        for _ in range(PATIENCE * SAMPLES // TICK):
            failing = world.incidents and draw.random() < INCIDENTS
            stable, canary = stable + arms[0].tick(failing), canary + arms[1].tick(failing)
            verdict = decide(world.rails, stable, canary, look=look, steps=len(world.steps), samples=SAMPLES)
            look = verdict.look
            if verdict.kind is not Kind.INCONCLUSIVE:
                break
        exposed += canary.requests
        if verdict.kind is not Kind.SUCCESS:
            break
    return Ending(verdict.kind, weight, exposed)


class Units(NamedTuple):
    """Of each request of a tick: its unit's bucket, how often it meets an error, and how much slower it is."""

    bucket: Ints
    faulty: Floats
    speed: Floats


@dataclass(frozen=True)
class Arm:
    """Makes the windows of one arm in one step, tick by tick."""

    world: World
    draw: np.random.Generator
    weight: int
    is_canary: bool

    def tick(self, failing: bool) -> Window:
        usual = self.world.canary_share if self.is_canary else self.world.stable_share
        ratio = 1.0 if self.is_canary else (10_000 - self.weight) / self.weight
        count = int(self.draw.poisson(TICK * usual * ratio))
        units = self._units(count)
        shares = {metric: self._share(metric, units, failing) for metric in SHARES}
        hangs = self.draw.random(count) < (self.world.hangs if self.is_canary else 0)
        values = {metric: self._values(metric, units, ~hangs) for metric in VALUES}
        waits = np.zeros((BUCKETS, BINS), dtype=int)
        np.add.at(waits[:, bin_of(LEAVE)], units.bucket[hangs], 1)
        return Window(count, tallies=shares | values, waiting={Metric.FIRST_TOKEN: waits} if hangs.any() else {})

    def _units(self, count: int) -> Units:
        """Each request's own, of a few that are always the same, or of new ones that come in this tick."""
        if self.world.pool:
            units, unit = self._pool, self.draw.integers(0, len(self._pool.bucket), count)
            return Units(units.bucket[unit], units.faulty[unit], units.speed[unit])
        if not self.world.per_unit:
            return Units(self.draw.integers(0, BUCKETS, count), np.ones(count), np.zeros(count))
        new = count // self.world.per_unit + 1
        busy = np.cumsum(self.draw.exponential(size=new))
        unit = np.searchsorted(busy, self.draw.random(count) * busy[-1])
        units = self._some(new)
        return Units(units.bucket[unit], units.faulty[unit], units.speed[unit])

    @cached_property
    def _pool(self) -> "Units":
        return self._some(self.world.pool * (1 if self.is_canary else max((10_000 - self.weight) // self.weight, 1)))

    def _some(self, count: int) -> "Units":
        draw = self.draw
        return Units(draw.integers(0, BUCKETS, count), draw.exponential(size=count), draw.normal(0, 0.3, count))

    def _share(self, metric: Metric, units: Units, failing: bool) -> Tally:
        rate: Floats | float = USUAL[metric]
        if metric is Metric.ERRORS:
            rate = (INCIDENT if failing else self.world.errors if self.is_canary else rate) * units.faulty
        hit = self.draw.random(len(units.bucket)) < rate
        measured = self.draw.binomial(len(hit), MEASURED.get(metric, 1))
        return np.bincount((2 * units.bucket + hit)[:measured], minlength=2 * BUCKETS).reshape(BUCKETS, 2)

    def _values(self, metric: Metric, units: Units, answered: NDArray[np.bool]) -> Tally:
        mean, deviation = SPREAD[metric]
        value = deviation * self.draw.standard_normal(len(units.bucket))
        if self.is_canary and metric is Metric.FIRST_TOKEN and self.world.slower != 1:
            value += np.log(self.world.slower) * (value > deviation * norm.ppf(self.world.above))
        place = (((value + units.speed + mean) / np.log(2) - LOWEST) * OCTAVE).astype(int)
        return np.bincount((BINS * units.bucket + place)[answered], minlength=BINS * BUCKETS).reshape(BUCKETS, BINS)


@dataclass(frozen=True)
class Case:
    """wanted: of the rollouts, the part that ends in this way below a weight of `before`, at least or at most."""

    name: str
    world: World
    runs: int
    wanted: str = ""
    before: int = 10_001
    ends: Kind = Kind.FAILURE

    def meets(self, part: float) -> bool:
        return not self.wanted or (part <= self._bound if self.wanted.startswith("at most") else part >= self._bound)

    @property
    def target(self) -> str:
        return f"{'promoted: ' if self.ends is Kind.SUCCESS else ''}{self.wanted}"

    @property
    def _bound(self) -> float:
        return float(self.wanted.split()[-2]) / 100


NOTHING = World(stable_share=0, canary_share=0)
EVALUATED = World(lines=19, rails=(*RAILS, Guardrail.of(Metric.EVALUATION)))
CASES = (
    Case("A/A", World(), 500, "at most 5 %"),
    Case("A/A, no margins", World().tightened(), 500, "at most 5 %"),
    Case("A/A, units of about ten requests", World(per_unit=10), 100, "at most 5 %"),
    Case("A/A, units of about ten, no margins", World(per_unit=10).tightened(), 100),
    Case("A/A, twenty busy units", World(pool=20), 100, "at least 95 %", ends=Kind.SUCCESS),
    Case("A/A, twenty busy units, no margins", World(pool=20).tightened(), 100),
    Case("A/A, incidents in both arms", World(incidents=True), 100, "at most 5 %"),
    Case("A/A, incidents in both, no margins", World(incidents=True).tightened(), 100),
    Case("errors 1 % -> 5 %", World(errors=0.05), 1000, "at least 99 %", 3000),
    Case("errors 1 % -> 5 %, units of about ten", World(errors=0.05, per_unit=10), 100),
    Case("first token +50 %", World(slower=1.5), 500, "at least 95 %"),
    Case("first token +50 % above its p90 only", World(slower=1.5, above=0.9), 500, "at least 95 %"),
    Case("a tenth hangs until its clients leave", World(hangs=0.1), 200, "at least 95 %"),
    Case("A/A, evaluation of 19 lines", EVALUATED, 100, "at most 5 %"),
    Case("19 lines, 90 % pass -> 10 %", replace(EVALUATED, passes=(0.9, 0.1)), 200, "at least 95 %"),
    Case("A/A, three units", World(pool=3), 20, "at most 0 %", ends=Kind.SUCCESS),
    Case("first token times 90, three units", World(pool=3, slower=90), 20, "at most 0 %", ends=Kind.SUCCESS),
    Case("canary fails, three units", World(pool=3, errors=1), 20, "at most 0 %", ends=Kind.SUCCESS),
    Case("no traffic", NOTHING, 20, "at most 0 %"),
    Case("canary fails, but has 8 requests", World(errors=1, canary_share=0.002), 100, "at most 0 %"),
    Case("canary fails, stable has no traffic", World(errors=1, stable_share=0), 20, "at most 0 %"),
)


def row(case: Case, seed: int, runs: int) -> tuple[str, bool]:
    """A line of the table, and whether it is as wanted."""
    started, draw = time.process_time(), np.random.default_rng(seed)
    endings = [roll(case.world, draw) for _ in range(runs)]
    back = [ending for ending in endings if ending.kind is Kind.FAILURE and ending.weight < case.before]
    paused = sum(ending.kind is Kind.INCONCLUSIVE for ending in endings)
    counted = [ending for ending in endings if ending.kind is case.ends and ending.weight < case.before]
    met = case.meets(len(counted) / runs)
    exposed = f"{statistics.median(ending.exposed for ending in back):.0f}" if back else "-"
    return (
        f"{case.name:38} {runs:6} {rate(len(back), runs)} {100 * paused / runs:6.1f} {exposed:>8}"
        f"  {case.target:21} {'' if met else 'MISSED':6} {time.process_time() - started:6.1f}"
    ), met


def rate(count: int, total: int) -> str:
    """Per cent, with the exact 95 % interval."""
    low, high = binomtest(count, total).proportion_ci(method="exact")
    return f"{100 * count / total:6.2f} [{100 * low:5.2f}, {100 * high:6.2f}]"


def naive(draw: np.random.Generator, runs: int, looks: int = 10, *, production: bool = False) -> int:
    """How many of A/A runs at equal weights are rejected by the errors alone: at 5 % in each of ten looks, or by
    production's code with all of alpha for this one guardrail in one step."""
    rails = [Guardrail.of(Metric.ERRORS, margin=0.0)]
    rejected = 0
    for _ in range(runs):
        bad, size = np.cumsum(draw.binomial(200, 0.1, (looks, 2)), 0), 200 * np.arange(1, looks + 1)
        if production:
            rejected += any(verdict is Kind.FAILURE for verdict in _verdicts(rails, bad, size))
        else:
            pooled = bad.sum(1) / (2 * size)
            z = (bad[:, 1] - bad[:, 0]) / size / np.sqrt(2 * pooled * (1 - pooled) / size)
            rejected += bool((z > norm.isf(0.05)).any())
    return rejected


def _verdicts(rails: Sequence[Guardrail], bad: Ints, sizes: Ints) -> Iterator[Kind]:
    look = 0
    for hits, size in zip(bad, sizes, strict=True):
        arms = (Window(size, tallies={Metric.ERRORS: _even(hit, size)}) for hit in hits)
        verdict = decide(rails, *arms, look=look, steps=1, samples=sizes[-1])
        look = verdict.look
        yield verdict.kind


def _even(hits: int, total: int) -> Tally:
    """Hits of total, spread over the buckets as evenly as can be."""
    spread = np.array([[(count + bucket) // BUCKETS for bucket in range(BUCKETS)] for count in (total - hits, hits)])
    return spread.T


def skewed(draw: np.random.Generator, runs: int, assigned: float) -> int:
    """How many of the runs of 4,000 units at a weight of 10 % are held for their split, at any of ten ticks."""
    held = 0
    for _ in range(runs):
        units = draw.integers(0, 2**53, 4000)
        canary = draw.random(4000) < assigned
        for seen in range(400, 4001, 400):
            sides = (frozenset(units[:seen][canary[:seen] == side].tolist()) for side in (False, True))
            stable, canary_window = (Window(1000, units=side) for side in sides)
            verdict = decide((), stable, canary_window, look=0, steps=1, samples=1, weight=1000)
            if verdict.kind is Kind.INCONCLUSIVE:
                held += 1
                break
    return held


def report(seed: int, scale: float) -> bool:
    """Prints the table. Whether all is as wanted."""
    print(f"seed {seed}; {len(RAILS)} guardrails enforced; {SAMPLES} requests of the canary asked for in each step of")
    print(f"{', '.join(f'{weight / 100:g} %' for weight in STEPS)}; a tick brings about {TICK} of them")
    print(f"{'case':38} {'runs':>6} {'rolled back, %':>23} {'paused':>6} {'exposed':>8}  {'wanted':28} {'s':>6}")
    rows = (row(case, seed, max(round(scale * case.runs), 5)) for case in CASES)
    fine = True
    for text, met in rows:
        print(text, flush=True)
        fine &= met
    draw, runs = np.random.default_rng(seed), max(round(2000 * scale), 10)
    for name, count in (
        ("errors only, A/A, ten looks at 5 % each", naive(draw, runs)),
        ("errors only, A/A, ten looks, production", naive(draw, runs, production=True)),
        ("split as it should be: held", skewed(draw, runs // 10, 0.1)),
        ("a fifth of the canary's units lost: held", skewed(draw, runs // 10, 0.08)),
    ):
        of = runs // 10 if name.endswith("held") else runs
        print(f"{name:40} {of:4} {rate(count, of)}")
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of runs")
    arguments = parser.parse_args()
    if not report(arguments.seed, arguments.scale):
        raise SystemExit("Not all is as wanted")


if __name__ == "__main__":
    main()
