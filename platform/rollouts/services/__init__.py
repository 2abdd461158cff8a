"""The rollouts' verbs. Each is one transaction with its audit event; every change of state is a compare-and-set."""

from rollouts.services import changes, evidence
from rollouts.services.evidence import trip
from rollouts.services.feedback import give_feedback
from rollouts.services.machine import advance, sweep, tick
from rollouts.services.plans import Plan, PlannedStep, create_rollout, start_rollout
from rollouts.services.verbs import abort, approve, pause, promote, resume

__all__ = [
    "Plan",
    "PlannedStep",
    "abort",
    "advance",
    "approve",
    "changes",
    "create_rollout",
    "evidence",
    "give_feedback",
    "pause",
    "promote",
    "resume",
    "start_rollout",
    "sweep",
    "tick",
    "trip",
]
