"""The verbs of evaluation. Each change is one transaction with its audit event."""

from evaluations.intervals import Score
from evaluations.services.requests import (
    asks_with,
    cancel_evaluation,
    request_evaluation,
    resume_evaluations,
    waiting,
)
from evaluations.services.running import run_evaluation
from evaluations.services.scores import comparison, latest_score, score_pairs
from evaluations.services.sets import create_set, delete_set

__all__ = [
    "Score",
    "asks_with",
    "cancel_evaluation",
    "comparison",
    "create_set",
    "delete_set",
    "latest_score",
    "request_evaluation",
    "resume_evaluations",
    "run_evaluation",
    "score_pairs",
    "waiting",
]
