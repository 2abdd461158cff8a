"""Keeps tenants within their budgets: room is taken before a request runs, and what it used is settled after.

Taking room is one conditional update of one row, so requests that come at once can't take the same room twice. Room
that is taken belongs to a call in the ledger and is given back in the transaction that ends that call, whoever ends
it: its process, or `ledger.close_lost` once that process is dead. A request counts in the period that it began in.

Without the database nothing is let through (fails closed).
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from metering.errors import BudgetExceeded
from metering.models import Account, Budget, Call
from tenants.isolation import within
from webhooks.services import emit

WARN_AT = 80  # percent of a budget


@dataclass(frozen=True, slots=True)
class Room:
    """Where a request has to find room: an account, until its period is over."""

    account: int
    until: datetime


class _Short(Exception):
    """This account has not the room."""

    def __init__(self, account: int) -> None:
        super().__init__()
        self.account = account


def rooms(tenant: UUID, key: UUID, now: datetime | None = None) -> tuple[Room, ...]:
    """The accounts that a request by this key would be on now, opened if need be."""
    now = now or timezone.now()
    with within(tenant):
        budgets = Budget.objects.filter(Q(key=None) | Q(key=key), tenant=tenant).with_accounts(now)
        accounts = [(_opened(budget, now), budget.span(now).end) for budget in budgets]
    return tuple(Room(account.pk, end) for account, end in accounts if account is not None)


def reserve(call: Call, known: Collection[Room], tokens: int) -> None:
    """Take room for what the call can use at most, on every account or on none; writes the call as under way.

    known: of a moment ago. Raises BudgetExceeded, and tells the tenant if what was used already leaves no room.
    """
    if any(room.until <= call.started_at for room in known):
        known = rooms(call.tenant_id, call.key, call.started_at)
    call.reserved, call.accounts = tokens, sorted(room.account for room in known)
    with within(call.tenant_id):
        while True:
            try:
                return _reserve(call)
            except _Short as short:
                account = Account.objects.select_related("budget__tenant").filter(pk=short.account).first()
                if account is not None:
                    raise _refused(account, tokens) from None
                call.accounts.remove(short.account)  # its budget has just been deleted


def settle(calls: Iterable[Call]) -> None:
    """Give back the room of calls that have ended, less what they used. In the transaction that ends them."""
    taken: dict[int, list[Call]] = {}
    for call in calls:
        for account in call.accounts:
            taken.setdefault(account, []).append(call)
    for account in sorted(taken):  # whoever locks several does so in this order
        room, used = sum(call.reserved for call in taken[account]), sum(call.tokens for call in taken[account])
        Account.objects.filter(pk=account).update(reserved=F("reserved") - room, used=F("used") + used)
    if taken:
        warn(taken)


def warn(accounts: Iterable[int]) -> None:
    """Tell tenants of the accounts that have come to WARN_AT percent: once each."""
    nearly = Account.objects.filter(pk__in=list(accounts), warned_at=None, used__gte=F("tokens") * WARN_AT / 100)
    for account in nearly.select_related("budget__tenant").order_by("pk"):
        if _mark(account, "warned_at"):
            emit(account.budget.tenant, "budget.threshold", told_of(account))


def told_of(account: Account) -> dict[str, Any]:
    budget = account.budget
    return {
        "budget": str(budget.pk),
        "key": str(budget.key_id) if budget.key_id else None,
        "period": budget.period,
        "starts_on": account.starts_on,
        "tokens": account.tokens,
        "used": account.used,
    }


@transaction.atomic
def _reserve(call: Call) -> None:
    """The contended rows come last, so that they are locked for no longer than a commit takes."""
    call.save(force_insert=True)
    for account in call.accounts:
        room = Account.objects.filter(pk=account, tokens__gte=F("used") + F("reserved") + call.reserved)
        if room.update(reserved=F("reserved") + call.reserved) != 1:
            raise _Short(account)


@transaction.atomic
def _refused(account: Account, tokens: int) -> BudgetExceeded:
    """Why, and until when; tells the tenant, once a period, that a budget is used up."""
    budget, left = account.budget, account.tokens - account.used
    end = account.span.end
    whose = "this key's" if budget.key_id else "your"
    message = f"This request may use up to {tokens} tokens; {whose} budget for the {budget.period} has "
    if tokens > left:
        if tokens <= account.tokens and _mark(account, "exceeded_at"):
            emit(budget.tenant, "budget.exceeded", told_of(account))
        message += f"{max(0, left)} of {account.tokens} left. It starts anew at {end:%Y-%m-%d %H:%M} UTC."
        return BudgetExceeded(f"{message} A lower limit of tokens may fit.", final=True, until=end)
    free = max(0, left - account.reserved)
    message += f"{free} of {account.tokens} left while other requests run. Try again soon, or ask for fewer tokens."
    return BudgetExceeded(message, final=False, until=end)


def _mark(account: Account, moment: str) -> bool:
    """Compare and set: True for the one who is the first in this period."""
    return Account.objects.filter(pk=account.pk, **{moment: None}).update(**{moment: timezone.now()}) == 1


def _opened(budget: Budget, now: datetime) -> Account | None:
    """The budget's account, made under its lock if need be, so that no change of its limit is missed."""
    account = budget.account_at(now)
    if account.pk is not None:
        return account
    with transaction.atomic():
        current = Budget.objects.select_for_update(no_key=True).filter(pk=budget.pk).first()
        if current is None:  # it was deleted meanwhile
            return None
        wanted = {"budget": current, "starts_on": account.starts_on}
        return Account.objects.get_or_create(**wanted, defaults={"tokens": current.tokens})[0]
