"""Answers what versions scored. Reads only."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.db.models import Q, QuerySet

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


def score_pairs(first: Version, second: Version) -> dict[str, dict[str, Any]]:
    """Both versions' newest scores on each set, and by how much the second's is higher, item by item."""
    sides = [{one.set_id: one for one in _newest(version)} for version in (first, second)]
    sets = {one.set_id: one.set.name for side in sides for one in side.values()}
    return {
        name: _pair(sides[0].get(pk), sides[1].get(pk)) for pk, name in sorted(sets.items(), key=lambda known: known[1])
    }


def _newest(version: Version) -> QuerySet[Evaluation]:
    return Evaluation.objects.filter(version=version).newest().select_related("set")


def _pair(first: Evaluation | None, second: Evaluation | None) -> dict[str, Any]:
    shown = [asdict(one.score) if one and one.score else None for one in (first, second)]
    return {"scores": shown, "difference": _difference(first, second)}


def _difference(first: Evaluation | None, second: Evaluation | None) -> dict[str, Any] | None:
    """Both answered the same items, so their differences tell more than two intervals beside each other."""
    if first is None or second is None or first.done < 2:
        return None
    values = [dict(one.results.values_list("item", "value")) for one in (first, second)]
    return asdict(mean([values[1][item] - values[0][item] for item in values[0]]))


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
