"""Asks evaluations for the scores of both versions on a rollout's set, and has made what is missing."""

from audit.services import SYSTEM
from evaluations.errors import EvaluationUnderWay, TooMany
from evaluations.models import Evaluation, EvaluationSet, Measure
from evaluations.models import State as EvaluationState
from evaluations.services import latest_score, request_evaluation
from registry.errors import ModelNotFound
from registry.models import Version
from rollouts.models import Rollout
from rollouts.windows import Score, Window

Scores = tuple[Score | None, Score | None]
LOST = (EvaluationState.FAILED, EvaluationState.CANCELLED)


def scores(rollout: Rollout) -> Scores:
    """Stable's and the canary's on the rollout's set; None where there is none yet."""
    known = rollout.evaluation_set
    return (None, None) if known is None else (_score(rollout.stable, known), _score(rollout.canary, known))


def scored(rollout: Rollout, arms: tuple[Window, Window]) -> tuple[Window, Window]:
    """The windows with their versions' scores, if the rollout has a set."""
    if not rollout.evaluation:
        return arms
    stable, canary = scores(rollout)
    return arms[0].scored(stable), arms[1].scored(canary)


def have_made(rollout: Rollout) -> str | None:
    """Ask for the scores that are missing, in the caller's transaction. A text: why there will be none."""
    known = rollout.evaluation_set
    assert known is not None, "a rollout under way holds the set that it names"
    for version in (rollout.stable, rollout.canary):
        if _score(version, known) is None and (problem := _ask(rollout, version, known)):
            return problem
    return None


def _ask(rollout: Rollout, version: Version, known: EvaluationSet) -> str | None:
    tried = Evaluation.objects.filter(version=version, set=known, created_at__gte=rollout.started_at)
    lost = tried.filter(state__in=LOST).first()
    if lost is not None:
        return f"The evaluation of v{version.number} is {lost.state}: {lost.error or 'nobody says why'}"
    try:
        name = f"{rollout.adapter.name}@v{version.number}"
        request_evaluation(rollout.adapter.tenant, known, name, actor=SYSTEM)
    except (EvaluationUnderWay, TooMany):
        return None  # the next tick asks again
    except ModelNotFound as error:
        return str(error)
    return None


def _score(version: Version, known: EvaluationSet) -> Score | None:
    score = latest_score(version, known)
    if score is None:
        return None
    return Score(score.mean, score.low, score.high, score.n, passes=known.measure == Measure.ACCURACY)
