"""Answers what versions scored. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import Q

from evaluations.intervals import Score, mean, proportion
from evaluations.models import Evaluation, EvaluationSet, Measure, State
from registry.models import Version
from tenants.models import Tenant


@dataclass(frozen=True, slots=True)
class Row:
    """One model's newest evaluation on each set that it has been through, by the set's name."""

    model: str
    version: int | None
    evaluations: dict[str, Evaluation]


def score_of(evaluation: Evaluation) -> Score:
    """Of an evaluation whose every item has a result."""
    values = list(evaluation.results.values_list("value", flat=True))
    if evaluation.set.measure == Measure.ACCURACY:
        return proportion(sum(value == 1 for value in values), len(values))
    return mean(values, most=0.0)


def latest_score(version: Version, evaluation_set: EvaluationSet) -> Score | None:
    """The version's score on the set by its newest evaluation that succeeded; None if there is none yet."""
    done = Evaluation.objects.filter(version=version, set=evaluation_set, state=State.SUCCEEDED)
    newest = done.order_by("-finished_at").first()
    return newest.score if newest else None


def latest_scores(version: Version) -> dict[str, Score]:
    """The version's newest score on each set, by the set's name."""
    newest = Evaluation.objects.filter(version=version).newest().select_related("set")
    return {one.set.name: one.score for one in newest if one.score is not None}


def comparison(tenant: Tenant, adapter: str | None, allowed: Sequence[str] = ()) -> list[Row]:
    """The base model, then every version that has a score, of one adapter or of all (that are `allowed`)."""
    versions = Q(version__isnull=False)
    if adapter is not None:
        versions = Q(version__adapter__name=adapter if adapter.isprintable() else None)
    if allowed:
        versions &= Q(version__adapter__name__in=allowed)
    found = Evaluation.objects.for_tenant(tenant).filter(versions | Q(version=None)).newest()
    rows: dict[str, Row] = {}
    for one in found.select_related("set", "version__adapter"):
        number = one.version.number if one.version else None
        rows.setdefault(one.model, Row(one.model, number, {})).evaluations[one.set.name] = one
    return sorted(rows.values(), key=_place)


def _place(row: Row) -> tuple[bool, str, int]:
    """The base first, then adapters by name and version."""
    return row.version is not None, row.model.partition("@")[0], row.version or 0
