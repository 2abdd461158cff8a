"""Knows what was measured of the requests of one arm, in bounded memory. Knows no verdicts, models or clocks.

A window adds up: `Window.of(new samples) + window` is the window of all of them, so a tick reads only what came since
the last one and keeps the sum, as JSON, with its step. Requests are kept apart by which of BUCKETS their unit hashes
to, so that a judge can see whether a difference comes from many units or from a busy few.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Tally = NDArray[np.int64]  # [BUCKETS, bins]

BUCKETS = 32
UNITS = 2048  # of each arm, those with the smallest hashes
OCTAVE = 16  # bins to a doubling: two values in one bin differ by less than 4.5 %
LOWEST, OCTAVES = -10, 30  # from 1/1024 to 2**20, in seconds or in tokens
BINS = OCTAVE * OCTAVES


class Metric(StrEnum):
    """What a guardrail can watch. Shares count what is bad: an invalid answer for SCHEMA, a thumb down for THUMBS."""

    ERRORS = "error_rate"
    EMPTY = "empty_answers"
    CUT = "cut_answers"
    REPETITION = "repetition"
    REFUSALS = "refusals"
    SCHEMA = "schema_validity"
    THUMBS = "thumbs"
    FIRST_TOKEN = "first_token_p95"  # noqa: S105
    INTER_TOKEN = "inter_token_p95"  # noqa: S105
    LENGTH = "output_length"
    EVALUATION = "evaluation_score"


SHARES = (
    Metric.ERRORS,
    Metric.EMPTY,
    Metric.CUT,
    Metric.REPETITION,
    Metric.REFUSALS,
    Metric.SCHEMA,
    Metric.THUMBS,
)
VALUES = (Metric.FIRST_TOKEN, Metric.INTER_TOKEN, Metric.LENGTH)


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request. None: not measured, or meaningless here (a failed request has no answer to judge).

    unit: what assignment is sticky to. first_token: seconds, None after a cold load. inter_token: seconds, the mean gap
    of this answer, since gaps of one answer are no independent samples. tokens: of the answer. Give only requests that
    were assigned within the step, and no tester's who chose by header. waiting: there was no first token yet when the
    client left after `first_token` seconds.
    """

    unit: str
    error: bool = False
    first_token: float | None = None
    waiting: bool = False
    inter_token: float | None = None
    tokens: int | None = None
    empty: bool | None = None
    cut: bool | None = None
    repetitive: bool | None = None
    refused: bool | None = None
    invalid: bool | None = None

    @property
    def measures(self) -> dict[Metric, float | None]:
        return {
            Metric.ERRORS: self.error,
            Metric.EMPTY: self.empty,
            Metric.CUT: self.cut,
            Metric.REPETITION: self.repetitive,
            Metric.REFUSALS: self.refused,
            Metric.SCHEMA: self.invalid,
            Metric.FIRST_TOKEN: self.first_token,
            Metric.INTER_TOKEN: self.inter_token,
            Metric.LENGTH: self.tokens,
        }


@dataclass(frozen=True, slots=True)
class Score:
    """An evaluation's mean with its 95 % interval, over n examples. passes: it is the share of those that passed."""

    mean: float
    low: float
    high: float
    n: int
    passes: bool = True


@dataclass(frozen=True, eq=False)
class Window:
    """What one arm did in one step. Made by `of`, `of_thumbs`, `from_json` and `+`.

    units: hashes of the UNITS smallest, which makes the units of two arms a fair sample of all units. waiting: values
    that are only lower bounds, apart from the others.
    """

    requests: int = 0
    units: frozenset[int] = frozenset()
    tallies: Mapping[Metric, Tally] = field(default_factory=dict)
    waiting: Mapping[Metric, Tally] = field(default_factory=dict)
    score: Score | None = None

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Self:
        requests, units = 0, set()
        tallies, waiting = dict[Metric, Tally](), dict[Metric, Tally]()
        for sample in samples:
            requests += 1
            unit = _hash(sample.unit)
            units.add(unit)
            for metric, value in sample.measures.items():
                if value is not None:
                    bound = sample.waiting and metric is Metric.FIRST_TOKEN
                    _count(waiting if bound else tallies, metric, unit, value)
        return cls(requests, _smallest(units), tallies, waiting)

    @classmethod
    def of_thumbs(cls, thumbs: Iterable[tuple[str, bool]]) -> Self:
        """(unit, whether it was up) of feedback that came for requests counted elsewhere."""
        tallies = dict[Metric, Tally]()
        for unit, up in thumbs:
            _count(tallies, Metric.THUMBS, _hash(unit), not up)
        return cls(tallies=tallies)

    def scored(self, score: Score | None) -> Self:
        return replace(self, score=score)

    def __add__(self, other: Self) -> Self:
        return replace(
            self,
            requests=self.requests + other.requests,
            units=_smallest(self.units | other.units),
            tallies=_sum(self.tallies, other.tallies),
            waiting=_sum(self.waiting, other.waiting),
        )

    def tally(self, metric: Metric) -> Tally:
        return self.tallies[metric] if metric in self.tallies else _nothing(metric)

    def waits(self, metric: Metric) -> Tally | None:
        return self.waiting.get(metric)

    def samples(self, metric: Metric) -> int:
        """Those that are lower bounds among them."""
        if metric is Metric.EVALUATION:
            return self.score.n if self.score else 0
        return sum(int(part[metric].sum()) for part in (self.tallies, self.waiting) if metric in part)

    def as_json(self) -> dict[str, Any]:
        """Sparse, without the score, which is kept with the version."""
        parts = {"tallies": _sparse(self.tallies), "waiting": _sparse(self.waiting)}
        return {"requests": self.requests, "units": sorted(self.units), **parts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `as_json`; `{}` is the empty window."""
        tallies, waiting = (_dense(data.get(part, {})) for part in ("tallies", "waiting"))
        return cls(data.get("requests", 0), frozenset(data.get("units", ())), tallies, waiting)


def bin_of(value: float) -> int:
    """Of BINS, logarithmic; what is beyond the range goes into the outermost."""
    if value <= 0:
        return 0
    return min(max(math.floor(OCTAVE * (math.log2(value) - LOWEST)), 0), BINS - 1)


def value_of(place: int) -> float:
    """The middle of a bin."""
    return float(2 ** ((place + 0.5) / OCTAVE + LOWEST))


def _count(tallies: dict[Metric, Tally], metric: Metric, unit: int, value: float) -> None:
    tally = tallies.setdefault(metric, _nothing(metric))
    tally[unit % BUCKETS, int(value) if metric in SHARES else bin_of(value)] += 1


def _sum(first: Mapping[Metric, Tally], second: Mapping[Metric, Tally]) -> dict[Metric, Tally]:
    both = dict(first)
    for metric, tally in second.items():
        both[metric] = both[metric] + tally if metric in both else tally
    return both


def _sparse(tallies: Mapping[Metric, Tally]) -> dict[str, list[list[int]]]:
    """[bucket, bin, count] of each that is not empty."""
    return {
        metric.value: [[int(b), int(i), int(tally[b, i])] for b, i in zip(*np.nonzero(tally), strict=True)]
        for metric, tally in tallies.items()
    }


def _dense(cells: Mapping[str, Iterable[tuple[int, int, int]]]) -> dict[Metric, Tally]:
    tallies = {Metric(name): _nothing(Metric(name)) for name in cells}
    for name, tally in tallies.items():
        for bucket, place, count in cells[name]:
            tally[bucket, place] = count
    return tallies


def _nothing(metric: Metric) -> Tally:
    return np.zeros((BUCKETS, 2 if metric in SHARES else BINS), dtype=np.int64)


def _hash(unit: str) -> int:
    """53 bits, which JSON carries everywhere; unlike the one that assigns, so that it knows nothing of arms."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8, person=b"window").digest()) >> 11


def _smallest(units: set[int] | frozenset[int]) -> frozenset[int]:
    return frozenset(units if len(units) <= UNITS else sorted(units)[:UNITS])
