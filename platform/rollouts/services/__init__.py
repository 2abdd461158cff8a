"""The rollouts' verbs. Each is one transaction with its audit event; every change of state is a compare-and-set.

Locks are taken in one order, so that nobody waits for somebody who waits for him: the adapter's row, a draft's, the
evaluation set's, that of the rollout under way, the tenant's, the audit chain's. So whoever is to move an alias has the
adapter before the rollout, and whatever changes another row does so before the first event is recorded.
"""

from rollouts.services import changes, evidence
from rollouts.services.evidence import sweep, trip
from rollouts.services.feedback import give_feedback
from rollouts.services.machine import tick
from rollouts.services.plans import Plan, PlannedStep, create_rollout, start_rollout
from rollouts.services.verbs import abort, approve, pause, promote, resume

__all__ = [
    "Plan",
    "PlannedStep",
    "abort",
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
