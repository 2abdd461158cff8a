"""Everything evaluations refuse, and why.

PlatformError
├── NotFound
│   └── NoSuchSet
├── Conflict
│   ├── NameTaken
│   ├── SetInUse             something under way, or a rollout, needs the set
│   ├── EvaluationUnderWay   the same set and version are being evaluated already
│   ├── EvaluationOver       there is nothing left to cancel
│   └── TooMany              a tenant's bound is reached
└── SetMalformed             400, with every fault's line
"""

from dataclasses import asdict, dataclass
from typing import Any

from tenants.errors import Conflict, NotFound, PlatformError

TOLD = 20  # faults that an answer names


class NoSuchSet(NotFound):
    param = "set"

    def __init__(self) -> None:
        super().__init__("There is no such evaluation set here.")


class NameTaken(Conflict):
    code = "name_taken"
    param = "name"


class SetInUse(Conflict):
    code = "evaluation_set_in_use"


class EvaluationUnderWay(Conflict):
    code = "evaluation_under_way"


class EvaluationOver(Conflict):
    code = "evaluation_over"


class TooMany(Conflict):
    code = "too_many"


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line, counted from 1; 0 is the file as a whole. `field` is "" for the line itself."""

    line: int
    field: str
    message: str

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line else "file"
        return f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"


class SetMalformed(PlatformError):
    code = "evaluation_set_malformed"
    param = "file"

    def __init__(self, faults: list[Fault]) -> None:
        told = [str(fault) for fault in faults[:TOLD]]
        more = [f"and {len(faults) - TOLD} more"] if len(faults) > TOLD else []
        super().__init__("; ".join(told + more) + ".")
        self.faults = faults[:TOLD]

    @property
    def body(self) -> dict[str, Any]:
        """With the faults one by one, for programs."""
        body: dict[str, Any] = super().body
        body["error"]["faults"] = [asdict(fault) for fault in self.faults]
        return body
