"""Makes and changes the console's accounts: one transaction and one audit event each, on the platform's chain."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from audit.models import Action
from audit.services import Actor, record
from tenants.errors import Conflict

CHANGEABLE = frozenset({"email", "is_active", "is_staff", "is_superuser"})


class UsernameTaken(Conflict):
    code = "username_taken"
    param = "username"


class LastOperator(Conflict):
    code = "last_operator"


def create_account(username: str, password: str, *, operator: bool, actor: Actor, email: str = "") -> Any:
    """Somebody who may log in. Raises UsernameTaken, and ValidationError for a name or password that won't do."""
    User = get_user_model()
    user = User(username=username, email=email, is_staff=True, is_superuser=operator)
    user.set_password(password)
    user.clean_fields()
    _check_password(password, user)
    with transaction.atomic():
        try:
            with transaction.atomic():
                user.save(force_insert=True)
        except IntegrityError as error:
            raise UsernameTaken(f"There is an account {username!r} already.") from error
        data = {"username": username, "operator": operator}
        record(Action.USER_CREATED, tenant=None, actor=actor, target=f"user:{user.pk}", data=data)
    return user


@transaction.atomic
def change_account(user: Any, *, actor: Actor, **changes: Any) -> Any:
    """Set any of CHANGEABLE. Raises LastOperator rather than leave nobody in charge."""
    assert changes.keys() <= CHANGEABLE
    User = get_user_model()
    operators = list(User.objects.select_for_update().filter(is_superuser=True, is_staff=True, is_active=True))
    user = User.objects.select_for_update().get(pk=user.pk)
    after = {name: value for name, value in changes.items() if value != getattr(user, name)}
    if not after:
        return user
    before = {name: getattr(user, name) for name in after}
    for name, value in after.items():
        setattr(user, name, value)
    in_charge = user.is_superuser and user.is_staff and user.is_active
    if not in_charge and operators == [user]:
        raise LastOperator("Nobody else is an operator; make somebody one first.")
    user.save(update_fields=list(after))
    data = {"before": before, "after": after}
    record(Action.USER_CHANGED, tenant=None, actor=actor, target=f"user:{user.pk}", data=data)
    return user


@transaction.atomic
def set_password(user: Any, password: str, *, actor: Actor) -> Any:
    """Give a person a new password; their sessions end. Raises ValidationError for one that won't do."""
    _check_password(password, user)
    user.set_password(password)
    user.save(update_fields=["password"])
    record(Action.USER_PASSWORD_CHANGED, tenant=None, actor=actor, target=f"user:{user.pk}")
    return user


def _check_password(password: str, user: Any) -> None:
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise ValidationError({"password": error.messages}) from error
