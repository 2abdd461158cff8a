"""Signing in: on the record whether it works or fails, and held back after some failures from one address."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.test import AsyncClient, Client

from audit.models import Action, Event
from audit.verification import verify

from .conftest import PASSWORD
from .forms import errors, recorded

HERE, ELSEWHERE = "192.0.2.7", "192.0.2.8"


@pytest.fixture
def limit(settings: Any) -> int:
    return int(settings.AXES_FAILURE_LIMIT)


def sign_in(username: str, password: str, address: str = HERE) -> Any:
    return Client(REMOTE_ADDR=address).post("/login/", {"username": username, "password": password})


def attempts() -> list[Any]:
    actions = [Action.USER_SIGNED_IN, Action.USER_SIGN_IN_FAILED]
    return list(Event.objects.filter(action__in=actions).order_by("id").values_list("action", "target", "tenant"))


def test_it_is_recorded_whether_it_works_or_fails(operator: User) -> None:
    assert sign_in("olivia", "wrong").status_code == 200
    assert sign_in("olivia", PASSWORD).headers["Location"] == "/"
    assert recorded(Action.USER_SIGNED_IN).address == HERE
    target = f"user:{operator.pk}"
    assert attempts() == [(Action.USER_SIGN_IN_FAILED, target, None), (Action.USER_SIGNED_IN, target, None)]
    assert verify() == []


def test_a_name_that_is_no_account_s_is_not_written_down(operator: User) -> None:
    sign_in(PASSWORD, "olivia")
    assert attempts() == [(Action.USER_SIGN_IN_FAILED, "user:unknown", None)]
    assert PASSWORD not in str(list(Event.objects.values()))


def test_who_may_not_enter_the_console_fails_on_the_record(db: None) -> None:
    outsider = User.objects.create_user("otto", password=PASSWORD)
    assert errors(sign_in("otto", PASSWORD))
    assert attempts() == [(Action.USER_SIGN_IN_FAILED, f"user:{outsider.pk}", None)]


def test_after_some_failures_not_even_the_right_password_gets_in_and_the_page_says_so(
    operator: User, limit: int
) -> None:
    answers = [sign_in("olivia", "wrong") for _ in range(limit)]
    assert [answer.status_code for answer in answers] == [200] * (limit - 1) + [429]
    assert recorded(Action.USER_SIGN_IN_FAILED).data == {"locked": True}
    held = sign_in("olivia", PASSWORD)
    assert held.status_code == 429
    assert held.headers["Retry-After"] == "900"
    assert "Wait 15 minutes" in held.content.decode()
    assert "_auth_user_id" not in held.client.session
    assert len(attempts()) == limit, "what a lock holds back is not recorded once more"


def test_a_lock_is_one_account_s_from_one_address_so_nobody_locks_others_out(operator: User, limit: int) -> None:
    User.objects.create_user("ada", password=PASSWORD, is_staff=True)
    for _ in range(limit):
        sign_in("olivia", "wrong", HERE)
    assert sign_in("olivia", PASSWORD, HERE).status_code == 429
    assert sign_in("olivia", PASSWORD, ELSEWHERE).status_code == 302
    assert sign_in("ada", PASSWORD, HERE).status_code == 302


def test_signing_in_forgets_earlier_failures(operator: User, limit: int) -> None:
    for _ in range(2):
        for _ in range(limit - 1):
            sign_in("olivia", "wrong")
        assert sign_in("olivia", PASSWORD).status_code == 302


async def test_the_page_that_tells_of_a_lock_is_answered_by_the_web_s_own_handler_too(
    transactional_db: None, settings: Any
) -> None:
    """Middleware runs otherwise there than in tests that ask synchronously."""
    await sync_to_async(User.objects.create_superuser)("olivia", password=PASSWORD)
    client = AsyncClient()
    for _ in range(settings.AXES_FAILURE_LIMIT):
        answer = await client.post("/login/", {"username": "olivia", "password": "wrong"})
    for password in ("wrong", PASSWORD):
        answer = await client.post("/login/", {"username": "olivia", "password": password})
        assert answer.status_code == 429
        assert "Wait 15 minutes" in answer.content.decode()


@pytest.mark.parametrize("form", [{}, {"username": "olivia"}, {"password": "x"}, {"username": "a\0b", "password": ""}])
def test_a_form_that_tries_nothing_is_not_recorded(operator: User, form: dict[str, str]) -> None:
    assert Client(REMOTE_ADDR=HERE).post("/login/", form).status_code == 200
    assert attempts() == []


def test_a_name_with_a_zero_character_is_a_failure_like_any_other(operator: User) -> None:
    assert sign_in("oli\0via", PASSWORD).status_code == 200
    assert [action for action, *_ in attempts()] == [Action.USER_SIGN_IN_FAILED]


def test_the_form_asks_nothing_of_who_only_looks_at_it(client: Client, operator: User) -> None:
    assert client.get("/login/").status_code == 200
    assert attempts() == []
