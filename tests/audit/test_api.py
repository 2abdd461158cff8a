"""What a tenant can read of its own chain."""

from collections.abc import Callable

import pytest
from rest_framework.test import APIClient

from audit.models import Event
from tenants.models import Tenant

Clients = Callable[..., APIClient]


def test_a_tenant_reads_its_own_events_newest_first(acme: Tenant, globex: Tenant, client_of: Clients) -> None:
    client, stranger = client_of(acme), client_of(globex)
    rows = client.get("/api/v1/audit").json()["results"]
    assert [(row["number"], row["action"]) for row in rows] == [(2, "key:issued"), (1, "tenant:created")]
    assert rows[0]["previous"] == rows[1]["hash"]
    assert "acme" not in stranger.get("/api/v1/audit").content.decode()
    assert client_of(None).get("/api/v1/audit?tenant=acme").json()["results"] == rows


def test_who_from_where_and_the_request_are_recorded(acme: Tenant, client_of: Clients) -> None:
    client = client_of(acme)
    body = {"name": "x", "scopes": ["inference"]}
    answer = client.post(
        "/api/v1/keys", body, format="json", headers={"x-request-id": "abc-1"}, REMOTE_ADDR="192.0.2.7"
    )
    assert answer.headers["x-request-id"] == "abc-1"
    row = client.get("/api/v1/audit?request_id=abc-1").json()["results"][0]
    assert (row["address"], row["request_id"], row["target"]) == ("192.0.2.7", "abc-1", f"key:{answer.json()['id']}")
    assert row["actor"].startswith("key:")


def test_a_request_id_of_odd_characters_is_replaced(acme: Tenant, client_of: Clients) -> None:
    answer = client_of(acme).get("/api/v1/audit", headers={"x-request-id": "a b\u00e9" * 50})
    assert answer.headers["x-request-id"].startswith("req_")


def test_events_are_found_by_what_they_are_about(acme: Tenant, client_of: Clients) -> None:
    client = client_of(acme)
    event = Event.objects.get(tenant=acme, action="key:issued")

    def numbers(query: str) -> list[int]:
        return [row["number"] for row in client.get(f"/api/v1/audit?{query}").json()["results"]]

    assert numbers("action=key:issued") == [2]
    assert numbers("target=acme") == [1]
    assert numbers("actor=system:lorayard") == [2, 1]
    assert numbers("actor=user:1") == []
    assert numbers(f"since={event.created_at.isoformat().replace('+00:00', 'Z')}") == [2]
    assert numbers("until=2000-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("query", "param"),
    [("acton=x", "acton"), ("action=nothing", "action"), ("since=yesterday", "since"), ("target=%00", "target")],
)
def test_a_wrong_filter_is_named_instead_of_showing_everything(
    acme: Tenant, client_of: Clients, query: str, param: str
) -> None:
    answer = client_of(acme).get(f"/api/v1/audit?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_events_can_only_be_read(acme: Tenant, client_of: Clients, method: str) -> None:
    assert getattr(client_of(acme), method)("/api/v1/audit", {}, format="json").status_code in (403, 405)
