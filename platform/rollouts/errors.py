"""Knows what rollouts refuse, and why.

PlatformError
├── RolloutInvalid       400  the plan makes no sense
├── NotFound
│   └── RolloutNotFound
└── Conflict
    ├── RolloutActive    the alias has one under way
    ├── RolloutOver      it has succeeded or was rolled back
    ├── NotNow           the verb does not apply to the state it is in
    └── RolledBackBefore the version failed once; only `override` tries it again
"""

from tenants.errors import Conflict, NotFound, PlatformError


class RolloutInvalid(PlatformError):
    code = "invalid_rollout"


class RolloutNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such rollout here.")


class RolloutActive(Conflict):
    code = "rollout_active"

    def __init__(self, alias: str) -> None:
        super().__init__(f"The alias {alias!r} has a rollout under way; end it first.")


class RolloutOver(Conflict):
    code = "rollout_over"

    def __init__(self, state: str) -> None:
        super().__init__(f"The rollout is over: it is {state}.")


class NotNow(Conflict):
    code = "rollout_state"

    def __init__(self, verb: str, state: str) -> None:
        super().__init__(f"A rollout that is {state} can't {verb}.")


class RolledBackBefore(Conflict):
    code = "rolled_back_before"
    param = "version"

    def __init__(self, version: int) -> None:
        super().__init__(f"v{version}, or the same files, was rolled back before; say 'override' to try it again.")
