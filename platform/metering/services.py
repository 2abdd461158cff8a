"""Makes, changes and deletes budgets: one transaction and one audit event each. What holds them is `budgets`."""

from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils import timezone

from apikeys.models import ApiKey
from audit.models import Action
from audit.redaction import difference
from audit.services import Actor, record
from metering.budgets import warn
from metering.errors import BudgetExists, Imposed, NoSuchKey
from metering.models import Account, Budget, Period
from tenants.models import Tenant


def create_budget(
    tenant: Tenant, *, period: str, tokens: int, key: UUID | None = None, imposed: bool = False, actor: Actor
) -> Budget:
    """Holds from the next half-second on, for what is used from now on. Raises NoSuchKey, BudgetExists."""
    if key is not None and not ApiKey.objects.for_tenant(tenant).filter(pk=key).exists():
        raise NoSuchKey
    budget = Budget(tenant=tenant, key_id=key, period=Period(period), tokens=tokens, imposed=imposed)
    budget.clean_fields()
    with transaction.atomic():
        try:
            with transaction.atomic():
                budget.save(force_insert=True)
        except IntegrityError as error:
            raise BudgetExists(f"There is a budget for each {period} already: change that.") from error
        record(Action.BUDGET_CREATED, tenant=tenant, actor=actor, target=str(budget), data=_public(budget))
    return budget


@transaction.atomic
def change_budget(budget: Budget, *, tokens: int, operator: bool = False, actor: Actor) -> Budget:
    """A new limit, for the period under way too, of which the tenant will be told anew. Raises Imposed."""
    budget = _locked(budget, operator)
    data = difference(_public(budget), {**_public(budget), "tokens": tokens})
    if not data:
        return budget
    budget.tokens = tokens
    budget.clean_fields()
    budget.save(update_fields=["tokens"])
    under_way = Account.objects.filter(budget=budget, starts_on=budget.span(timezone.now()).start.date())
    under_way.update(tokens=tokens, warned_at=None, exceeded_at=None)
    warn(under_way.values_list("pk", flat=True))
    record(Action.BUDGET_CHANGED, tenant=budget.tenant, actor=actor, target=str(budget), data=data)
    return budget


@transaction.atomic
def delete_budget(budget: Budget, *, operator: bool = False, actor: Actor) -> None:
    """Holds nobody back any more, from the next half-second on. Raises Imposed."""
    budget = _locked(budget, operator)
    target, data = str(budget), _public(budget)
    budget.delete()
    record(Action.BUDGET_DELETED, tenant=budget.tenant, actor=actor, target=target, data=data)


def _locked(budget: Budget, operator: bool) -> Budget:
    budget = Budget.objects.select_for_update(of=("self",), no_key=True).select_related("tenant").get(pk=budget.pk)
    if budget.imposed and not operator:
        raise Imposed
    return budget


def _public(budget: Budget) -> dict[str, object]:
    key = str(budget.key_id) if budget.key_id else None
    return {"period": budget.period, "tokens": budget.tokens, "key": key, "imposed": budget.imposed}
