"""The verbs of evaluation. Each is one transaction with its audit event."""

from evaluations.intervals import Score
from evaluations.services.scores import latest_score

__all__ = ["Score", "latest_score"]
