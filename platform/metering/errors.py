"""How metering says no.

PlatformError                      400
├── BudgetExceeded                 429   what is left of a budget does not hold a request; with when to come again
├── NoSuchKey                      400
└── TooMuch                        400   more rows than one answer holds
Conflict
└── BudgetExists                   409
Forbidden
└── Imposed                        403   an operator made the budget
"""

from datetime import datetime

from django.utils import timezone

from tenants.errors import Conflict, Forbidden, PlatformError

SOON = 5  # seconds


class BudgetExceeded(PlatformError):
    """`final`: nothing but time helps. retry_after: seconds."""

    status = 429
    code = "insufficient_quota"

    def __init__(self, message: str, *, final: bool, until: datetime) -> None:
        super().__init__(message)
        self.final = final
        self.retry_after = max(1.0, (until - timezone.now()).total_seconds()) if final else SOON


class BudgetExists(Conflict):
    code = "budget_exists"
    param = "period"


class Imposed(Forbidden):
    code = "imposed_budget"

    def __init__(self) -> None:
        super().__init__("This budget was set by an operator, and only operators change it.")


class NoSuchKey(PlatformError):
    code = "no_such_key"
    param = "key"

    def __init__(self) -> None:
        super().__init__("There is no such key.")


class TooMuch(PlatformError):
    code = "too_many_rows"
