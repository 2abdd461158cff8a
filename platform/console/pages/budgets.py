"""Budgets, with what the period under way has seen of each. A member sees what an operator imposed, and leaves it."""

from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.safestring import SafeString

from apikeys.models import ApiKey
from audit.services import Actor
from console import display as show
from console import fields, filters
from console.access import access_of
from console.base import ConsoleAdmin
from console.site import site
from console.verbs import Verb, VerbForm
from metering import services
from metering.models import MOST, Budget, Period
from tenants.models import Role

TOKENS_HELP = "Of prompts and answers together. A request reserves the most that it can use."


class NewBudget(VerbForm):
    tenant = fields.row(Budget._meta.get_field("tenant"))
    key = fields.row(Budget._meta.get_field("key"), required=False, help_text="None: for all of the tenant's keys.")
    period = fields.one_of(Period.choices)
    tokens = fields.whole(min_value=1, max_value=MOST, help_text=TOKENS_HELP)

    def prepare(self) -> None:
        tenants = self.access.tenants_as(Role.OWNER)
        self.fields["tenant"].queryset = tenants  # type: ignore[attr-defined]
        self.fields["key"].queryset = ApiKey.objects.filter(tenant__in=tenants)  # type: ignore[attr-defined]


class CreateBudget(Verb):
    slug, title, submit = "create", "Set a budget", "Set"
    explains = "Requests that may use more than is left are refused. An operator's budget is the operators' to change."
    role = Role.OWNER
    form_class = NewBudget

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        wanted = form.cleaned_data
        key = wanted["key"].pk if wanted["key"] else None
        limit = {"period": wanted["period"], "tokens": wanted["tokens"], "key": key}
        imposed = access_of(self.request).operator
        return services.create_budget(wanted["tenant"], **limit, imposed=imposed, actor=actor)


class BudgetChanges(VerbForm):
    tokens = fields.whole(min_value=1, max_value=MOST, help_text=TOKENS_HELP)

    def prepare(self) -> None:
        self.initial = {"tokens": self.target.tokens}


class ChangeBudget(Verb):
    slug, title, submit, icon = "edit", "Edit", "Save", "edit"
    explains = "It holds for the period under way too."
    role = Role.OWNER
    form_class = BudgetChanges

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        operator = access_of(self.request).operator
        return services.change_budget(self.target, **form.cleaned_data, operator=operator, actor=actor)


class DeleteBudget(Verb):
    slug, title, submit, icon = "remove", "Delete", "Delete this budget", "delete"
    explains = "It holds nobody back any more."
    role = Role.OWNER
    danger = True

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        services.delete_budget(self.target, operator=access_of(self.request).operator, actor=actor)
        return self.target.tenant  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"The budget of {row} is deleted."


@admin.register(Budget, site=site)
class BudgetAdmin(ConsoleAdmin):
    tenant_path = "tenant_id"
    adds = CreateBudget
    verbs = (ChangeBudget, DeleteBudget)
    icon = "savings"
    list_display = ("name", "whose", "tokens_", "used", "reserved", "ends", "imposed")
    list_filter = (("tenant", filters.Row), ("period", filters.Choices), "imposed")
    search_fields = ("tenant__slug", "key__name")
    ordering = ("-created_at",)
    fields = ("tenant", "whose", "period", "tokens_", "used", "reserved", "ends", "imposed", "created_at")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: Any = super().get_queryset(request).select_related("tenant", "key")
        budgets: QuerySet[Any] = rows.with_accounts(timezone.now())
        return budgets

    @admin.display(description="Budget", ordering="tenant__slug")
    def name(self, budget: Budget) -> str:
        return f"{budget.tenant.slug}, each {budget.period}"

    @admin.display(description="For", ordering="key__name")
    def whose(self, budget: Budget) -> str:
        return budget.key.name if budget.key else "all keys"

    @admin.display(description="Tokens", ordering="tokens")
    def tokens_(self, budget: Budget) -> str:
        return f"{budget.tokens:,}"

    @admin.display(description="Used")
    def used(self, budget: Budget) -> SafeString:
        used = budget.account_at(timezone.now()).used
        return show.bar(used, budget.tokens, f"{used:,}")

    @admin.display(description="Reserved now")
    def reserved(self, budget: Budget) -> str:
        return f"{budget.account_at(timezone.now()).reserved:,}"

    @admin.display(description="Starts anew")
    def ends(self, budget: Budget) -> str:
        return f"{budget.span(timezone.now()).end:%Y-%m-%d} UTC"
