"""What a tenant is told of its use, and nobody else."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from metering import ledger
from metering.models import Call, Purpose
from tenants.models import Tenant

Clients = Callable[..., Any]
OTHER = "00000000-0000-0000-0000-000000000002"


@pytest.fixture
def used(acme: Tenant, globex: Tenant, call_of: Callable[..., Call]) -> datetime:
    """acme used `support` yesterday, by two keys; the base model today; and a shadow had a copy. globex used more."""
    today = timezone.now().replace(hour=12)
    yesterday = today - timedelta(days=1)
    ledger.write([call_of(acme, started_at=yesterday), call_of(acme, started_at=yesterday, key=OTHER, cached=2)])
    ledger.write([call_of(acme, started_at=today, adapter="", completion=1)])
    ledger.write([call_of(acme, started_at=yesterday, purpose=Purpose.SHADOW)])
    ledger.write([call_of(globex, started_at=today, prompt=10_000)])
    ledger.sum_up()
    return today


def asked(client: Any, query: str = "") -> Any:
    answer = client.get(f"/api/v1/usage{query}")
    assert answer.status_code == 200, answer.content
    return answer.json()["results"]


def test_usage_by_day(acme: Tenant, client_of: Clients, used: datetime) -> None:
    rows = asked(client_of(acme, "usage:read"), "?purpose=live")
    assert [row["day"] for row in rows] == [f"{used - timedelta(days=1):%Y-%m-%d}", f"{used:%Y-%m-%d}"]
    assert rows[0] == {
        **{"day": rows[0]["day"], "requests": 2, "failed": 0},
        **{"prompt_tokens": 20, "cached_tokens": 2, "completion_tokens": 10},
    }


def test_usage_by_what_one_asks_for(acme: Tenant, client_of: Clients, used: datetime) -> None:
    client = client_of(acme, "usage:read")
    assert {row["adapter"]: row["requests"] for row in asked(client, "?group_by=adapter")} == {"": 1, "support": 3}
    assert {row["purpose"]: row["requests"] for row in asked(client, "?group_by=purpose")} == {"live": 3, "shadow": 1}
    assert len(asked(client, "?group_by=key,day")) == 3
    assert [row["requests"] for row in asked(client, f"?group_by=key&key={OTHER}")] == [1]
    assert [row["requests"] for row in asked(client, "?group_by=adapter&adapter=")] == [1]
    day = f"{used:%Y-%m-%d}"
    assert [row["requests"] for row in asked(client, f"?from={day}&to={day}")] == [1]


@pytest.mark.parametrize("days", ["to=0001-01-05", "from=9999-12-31&to=9999-12-31", "from=0001-01-01&to=0001-01-01"])
def test_at_either_end_of_the_calendar_there_is_none(
    acme: Tenant, client_of: Clients, used: datetime, days: str
) -> None:
    assert asked(client_of(acme, "usage:read"), f"?{days}") == []


def test_a_stranger_sees_its_own_alone(globex: Tenant, client_of: Clients, used: datetime) -> None:
    assert [row["prompt_tokens"] for row in asked(client_of(globex, "usage:read"))] == [10_000]
    assert client_of(globex, "usage:read").get("/api/v1/usage?tenant=acme").status_code == 404
    assert client_of(globex, "inference").get("/api/v1/usage").status_code == 403


def test_an_operator_names_the_tenant(client_of: Clients, used: datetime) -> None:
    operator = client_of(None)
    assert operator.get("/api/v1/usage").status_code == 400
    assert len(asked(operator, "?tenant=acme")) == 2


def test_a_key_confined_to_an_adapter_sees_that_and_the_base_model(
    acme: Tenant, client_of: Clients, used: datetime, call_of: Callable[..., Call]
) -> None:
    ledger.write([call_of(acme, adapter="secret")])
    ledger.sum_up()
    rows = asked(client_of(acme, "usage:read", adapters=("support",)), "?group_by=adapter")
    assert [row["adapter"] for row in rows] == ["", "support"]


@pytest.mark.parametrize(
    "query",
    ["from=x", "to=2026-13-01", "from=2026-02-01&to=2026-01-01", "from=2020-01-01", "group_by=", "group_by=digest",
     "group_by=day,day", "purpose=fun", "key=1", "colour=red"],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(acme: Tenant, client_of: Clients, query: str) -> None:
    answer = client_of(acme, "usage:read").get(f"/api/v1/usage?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("from", "to", "group_by", "purpose", "key", "colour")


def test_days_are_utc(acme: Tenant, client_of: Clients, call_of: Callable[..., Call]) -> None:
    ledger.write([call_of(acme, started_at=datetime(2026, 1, 31, 23, 59, tzinfo=UTC))])
    ledger.sum_up()
    assert [row["day"] for row in asked(client_of(acme, "usage:read"), "?from=2026-01-01&to=2026-02-01")] == [
        "2026-01-31"
    ]
