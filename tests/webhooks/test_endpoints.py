"""The endpoints of a tenant, over the API."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from audit.models import Event
from tenants.models import Tenant
from webhooks.models import Delivery, Endpoint

Clients = Callable[..., APIClient]
PATH = "/api/v1/webhooks"
URL = "https://hooks.example.com/acme?token=t0p"
NEW = {"url": URL, "events": ["rollout.*", "version.ready"]}


def created(client: APIClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, {**NEW, **fields}, format="json")
    assert answer.status_code == 201, answer.content
    body: dict[str, Any] = answer.json()
    return body


def test_the_secret_is_shown_once(acme: Tenant, client_of: Clients) -> None:
    client = client_of(acme)
    body = created(client)
    assert body["secret"].startswith("whsec_")
    shown = client.get(f"{PATH}/{body['id']}")
    listed = client.get(PATH)
    assert shown.json() == listed.json()["results"][0] == {name: body[name] for name in body if name != "secret"}
    row = Endpoint.objects.values().get(pk=body["id"])
    assert body["secret"].removeprefix("whsec_") not in str(row)


def test_a_stranger_gets_404_for_everything(acme: Tenant, globex: Tenant, client_of: Clients) -> None:
    body = created(client_of(acme))
    stranger, one = client_of(globex), f"{PATH}/{body['id']}"
    answers = [stranger.get(one), stranger.patch(one, {"active": False}, format="json"), stranger.delete(one)]
    answers += [stranger.post(f"{one}/rotate"), stranger.post(f"{one}/ping"), stranger.get(f"{one}/deliveries")]
    assert {answer.status_code for answer in answers} == {404}
    assert stranger.get(PATH).json()["results"] == []
    assert Endpoint.objects.get().active
    assert not Delivery.objects.exists()


def test_a_key_without_the_scope_is_refused(acme: Tenant, client_of: Clients) -> None:
    reader = client_of(acme, "webhooks:read")
    assert reader.get(PATH).status_code == 200
    assert reader.post(PATH, NEW, format="json").status_code == 403
    assert client_of(acme, "inference", "adapters:write").get(PATH).status_code == 403


def test_every_change_is_audited_without_the_urls_token(acme: Tenant, client_of: Clients) -> None:
    client = client_of(acme)
    one = f"{PATH}/{created(client)['id']}"
    assert client.patch(one, {"events": ["alias.moved"], "active": True}, format="json").json()["events"] == [
        "alias.moved"
    ]
    assert client.patch(one, {"active": True}, format="json").status_code == 200  # the same again: no event
    assert client.post(f"{one}/rotate").json()["secret"].startswith("whsec_")
    assert client.delete(one).status_code == 204
    events = list(Event.objects.for_tenant(acme).filter(action__startswith="webhook:").order_by("number"))
    assert [event.action for event in events] == [
        f"webhook:{what}" for what in ("created", "changed", "rotated", "deleted")
    ]
    assert events[1].data == {
        "before": {"events": ["rollout.*", "version.ready"]},
        "after": {"events": ["alias.moved"]},
    }
    assert "t0p" not in str([event.data for event in events])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"url": "http://hooks.example.com/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
        ({"url": "https://user:pw@hooks.example.com/"}, "url"),
        ({"url": "ftp://hooks.example.com/"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://a:99999/"}, "url"),
        ({"events": ["nonsense"]}, "events"),
        ({"events": []}, "events"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_what_makes_no_sense_is_named(acme: Tenant, client_of: Clients, fields: dict[str, Any], param: str) -> None:
    answer = client_of(acme).post(PATH, {**NEW, **fields}, format="json")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not Endpoint.objects.exists()


def test_the_same_url_twice_is_a_conflict_and_another_tenants_is_none(
    acme: Tenant, globex: Tenant, client_of: Clients
) -> None:
    created(client_of(acme))
    assert client_of(acme).post(PATH, NEW, format="json").status_code == 409
    created(client_of(globex))


def test_a_tenant_has_only_so_many(acme: Tenant, client_of: Clients) -> None:
    client = client_of(acme)
    for number in range(20):
        created(client, url=f"https://hooks.example.com/{number}")
    answer = client.post(PATH, NEW, format="json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_webhook")
