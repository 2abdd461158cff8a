"""Turns what the data plane saw of a request into a sample, and trips on what no statistics are needed for.

Text is judged here, by a thread that no request waits for, and forgotten: a sample says that an answer was refused or
repeated itself, never what it was.
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import groupby
from typing import Any
from uuid import UUID

from django.db import IntegrityError, ProgrammingError, transaction
from django.utils import timezone
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from prometheus_client import Counter as Metric

from rollouts.models import Arm, Outcome, Sample
from rollouts.routing import Trial
from tenants.isolation import within

log = logging.getLogger(__name__)

SAMPLES = Metric("lorayard_rollout_samples", "Requests noted for a rollout", ("arm", "outcome"))

LONGEST = 32_768  # characters of an answer that are looked at
TOKENS = 1_024  # tokens of an answer that are looked at
GRAM = 4  # tokens
REPETITIVE = 0.5  # of the four-grams are repeats of others
ENOUGH = 24  # tokens, below which nothing is called repetitive
REFUSAL = re.compile(
    r"\W*(i'?m (really |very )?sorry|i am (really |very )?sorry|sorry,|(unfortunately,? )?i (can'?t|cannot|can not)\b"
    r"|i (won'?t|will not)\b|i( a|')?m (not able|unable) to|as an ai\b)",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Observation:
    """One request, as the gateway saw it; of its choices the first. first, last: of its tokens, on time.monotonic's
    clock, as is gone, when its client left. None: there was none.

    text, tokens: cut at LONGEST and TOKENS; whole: whether all of the text is there.
    """

    trial: Trial
    arm: Arm
    response: str = ""
    shadow: bool = False
    started: float = field(default_factory=time.monotonic)
    at: datetime = field(default_factory=timezone.now)
    first: float | None = None
    last: float | None = None
    gone: float | None = None
    count: int = 0
    cold: bool = False
    outcome: Outcome = Outcome.ABANDONED
    code: str = ""
    finish: str = ""
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    whole: bool = True

    def hear(self, text: str, tokens: Sequence[int], *, choice: int = 0) -> None:
        """Call at each piece of an answer. Holds no more than LONGEST characters and TOKENS tokens."""
        if choice:
            return
        if tokens:
            self.last = time.monotonic()
            self.first = self.first or self.last
        self.count += len(tokens)
        self.tokens += tokens[: TOKENS - len(self.tokens)]
        room = LONGEST - len(self.text)
        self.whole &= len(text) <= room
        self.text += text[:room]

    def fail(self, code: str) -> None:
        self.outcome, self.code = Outcome.ERROR, code

    def finished(self, reason: str) -> None:
        self.outcome, self.finish = Outcome.OK, reason

    def left(self) -> None:
        """Call when the client goes before the end."""
        self.gone = time.monotonic()

    def sample(self) -> Sample:
        """What is kept. Content is judged of whole answers alone; a shadow's speed says nothing, since it waits."""
        judged = self.outcome is Outcome.OK
        return Sample(
            rollout_id=self.trial.rollout,
            step=self.trial.step,
            arm=self.arm,
            shadow=self.shadow,
            at=self.at,
            unit=self.trial.unit,
            response=self.response[:64],
            outcome=self.outcome,
            code=self.code[:64],
            cold=self.cold,
            first_token=None if self.shadow else self._wait,
            inter_token=None if self.shadow else self._pace,
            tokens=self.count,
            finish=self.finish,
            empty=not self.text.strip() if judged else None,
            repetitive=repetitive(self.tokens) if judged else None,
            refusal=refuses(self.text) if judged else None,
            valid=self._valid if judged and self.whole else None,
        )

    @property
    def _wait(self) -> float | None:
        """For the first token; where the client left before it, until then, and the true time is longer."""
        until = self.gone if self.first is None and self.outcome is Outcome.ABANDONED else self.first
        return None if until is None else until - self.started

    @property
    def _pace(self) -> float | None:
        if self.first is None or self.last is None or self.count < 2:
            return None
        return (self.last - self.first) / (self.count - 1)

    @property
    def _valid(self) -> bool | None:
        schema = self.trial.schema
        return None if schema is None else fits(self.text, json.dumps(schema, sort_keys=True))


def refuses(text: str) -> bool:
    """Whether an answer opens like those that models refuse with."""
    return bool(REFUSAL.match(text[:200].replace("\u2019", "'")))


def repetitive(tokens: Sequence[int]) -> bool:
    """Whether half of the four-grams, or more, were there before."""
    if len(tokens) < ENOUGH:
        return False
    grams = Counter(tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1))
    return sum(grams.values()) - len(grams) >= REPETITIVE * sum(grams.values())


def fits(text: str, schema: str) -> bool:
    """Whether the text is JSON that the schema (JSON itself) allows."""
    try:
        validator_of(schema).validate(json.loads(text))
    except (ValueError, RecursionError, ValidationError):
        return False
    return True


@lru_cache(maxsize=64)
def validator_of(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def record(observations: Iterable[Observation]) -> set[UUID]:
    """Keep samples of these. Returns the rollouts whose canary failed a request, for the tripwire to look at.

    One transaction per tenant. What belongs to a rollout that is gone is dropped.
    """
    failed: set[UUID] = set()
    for tenant, own in groupby(sorted(observations, key=lambda o: o.trial.tenant), key=lambda o: o.trial.tenant):
        samples = [observation.sample() for observation in own]
        with within(tenant):
            _keep(samples)
        failed |= {s.rollout_id for s in samples if s.arm == Arm.CANARY and s.outcome == Outcome.ERROR}
    return failed


def _keep(samples: list[Sample]) -> None:
    try:
        with transaction.atomic():
            Sample.objects.bulk_create(samples)
    except (IntegrityError, ProgrammingError):  # the latter where the tenant can't see such a rollout
        log.info("a rollout is gone, and %s samples with it", len(samples))
        return
    for sample in samples:
        SAMPLES.labels(sample.arm, sample.outcome).inc()


def checked_schema(schema: Any) -> None:
    """Raises ValueError or SchemaError for what is no schema, leads elsewhere or could take long."""
    text = json.dumps(schema)
    if not isinstance(schema, dict) or len(text) > 16_384:
        raise ValueError("a JSON Schema is an object of at most 16,384 characters")
    if '"$ref"' in text or '"$dynamicRef"' in text or '"pattern"' in text or '"patternProperties"' in text:
        raise ValueError("references and patterns are not taken in a JSON Schema")
    Draft202012Validator.check_schema(schema)
