"""People: who may log in. Operators alone see and change them; what a person may do follows from memberships."""

from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from audit.services import Actor
from console import accounts, fields
from console.base import ConsoleAdmin, ConsoleInline
from console.site import site
from console.verbs import Verb, VerbForm
from tenants.models import Member

OPERATOR_HELP = "Sees and does everything, for every tenant."


class NewAccount(VerbForm):
    username = fields.text(max_length=150)
    email = fields.email(required=False)
    password = fields.secret()
    operator = fields.switch(help_text=OPERATOR_HELP)


class CreateAccount(Verb):
    slug, title, submit = "create", "Add a person", "Add"
    explains = "Make them a member of a tenant next, on the tenant's page."
    form_class = NewAccount

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return accounts.create_account(**form.cleaned_data, actor=actor)  # type: ignore[no-any-return]


class AccountChanges(VerbForm):
    email = fields.email(required=False)
    is_active = fields.switch(label="May log in")
    is_superuser = fields.switch(label="Operator", help_text=OPERATOR_HELP)

    def prepare(self) -> None:
        self.initial = {name: getattr(self.target, name) for name in self.fields}


class ChangeAccount(Verb):
    slug, title, submit, icon = "edit", "Edit", "Save", "edit"
    form_class = AccountChanges

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return accounts.change_account(self.target, **form.cleaned_data, actor=actor)  # type: ignore[no-any-return]


class NewPassword(VerbForm):
    password = fields.secret(help_text="Tell them on a safe way. Their sessions end.")


class SetPassword(Verb):
    slug, title, submit, icon = "set-password", "Set the password", "Set", "password"
    form_class = NewPassword

    def perform(self, form: VerbForm, actor: Actor) -> Model:
        return accounts.set_password(self.target, form.cleaned_data["password"], actor=actor)  # type: ignore[no-any-return]

    def done(self, row: Model) -> str:
        return f"{row} has a new password."


class Memberships(ConsoleInline):
    model = Member
    fields = readonly_fields = ("tenant", "role", "created_at")
    verbose_name_plural = "Memberships"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("tenant", "user")


@admin.register(get_user_model(), site=site)
class AccountAdmin(ConsoleAdmin):
    adds = CreateAccount
    verbs = (ChangeAccount, SetPassword)
    icon = "person"
    inlines = (Memberships,)
    list_display = ("username", "email", "operator", "is_active", "last_login", "date_joined")
    list_filter = ("is_superuser", "is_active")
    search_fields = ("username", "email")
    ordering = ("username",)
    fields = ("username", "email", "operator", "is_active", "last_login", "date_joined")

    def target_of(self, obj: Any) -> str:
        return f"user:{obj.pk}"

    @admin.display(description="Operator", boolean=True, ordering="is_superuser")
    def operator(self, user: Any) -> bool:
        return bool(user.is_superuser)
