"""Answers what versions scored. Reads only."""

from evaluations.intervals import Score
from evaluations.models import Evaluation, EvaluationSet, State
from registry.models import Version


def latest_score(version: Version, evaluation_set: EvaluationSet) -> Score | None:
    """The version's score on the set by its newest evaluation that succeeded; None if there is none yet."""
    done = Evaluation.objects.filter(version=version, set=evaluation_set, state=State.SUCCEEDED)
    newest = done.order_by("-finished_at").first()
    return newest.score if newest else None
