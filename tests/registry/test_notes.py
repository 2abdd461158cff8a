"""What makers say of a version can be changed, on the record; what the version is can't."""

from collections.abc import Callable
from typing import Any

import pytest
from rest_framework.test import APIClient

from audit.models import Event
from registry.models import Version
from tenants.models import Tenant

Clients = Callable[..., APIClient]
Push = Callable[..., Version]
ONE = "/api/v1/adapters/support/versions/1"


def test_a_version_tells_what_it_is(acme: Tenant, push: Push, client_of: Clients) -> None:
    push(acme, "support")
    shown = client_of(acme).get(ONE).json()
    assert (shown["base_model"], shown["target_modules"], shown["ranks"]) == ("tiny", ["q_proj", "v_proj"], [4, 4])
    assert (shown["aliases"], shown["notes"], shown["metrics"]) == (["stable"], "", {})
    assert shown["uploader"] == "system:lorayard"


def test_notes_and_metrics_are_set_and_the_change_is_recorded(
    acme: Tenant, globex: Tenant, push: Push, client_of: Clients
) -> None:
    push(acme, "support")
    client = client_of(acme)
    told = {"notes": "Less chatty.", "metrics": {"loss": 0.5, "sets": ["a", "b"]}}
    assert client_of(globex).patch(ONE, told, format="json").status_code == 404
    assert client_of(acme, "adapters:read").patch(ONE, told, format="json").status_code == 403
    shown = client.patch(ONE, told, format="json").json()
    assert {name: shown[name] for name in told} == told
    client.patch(ONE, told, format="json")
    event = Event.objects.for_tenant(acme).get(action="adapter:version:annotated")
    assert event.target == "acme/support@v1"
    assert event.data["before"] == {"notes": "", "metrics": {}}
    assert event.data["after"]["notes"] == "Less chatty."
    assert client.patch(ONE, {"metrics": {}}, format="json").json()["notes"] == "Less chatty."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"digest": "sha256:" + "0" * 64}, "digest"),
        ({"notes": "x" * 4001}, "notes"),
        ({"notes": "a\0b"}, "notes"),
        ({"metrics": []}, "metrics"),
        ({"metrics": {"x": "y" * 9000}}, "metrics"),
        ({"metrics": {"x": "a\0b"}}, "metrics"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_makes_no_sense_is_refused(
    acme: Tenant, push: Push, client_of: Clients, body: dict[str, Any], param: str
) -> None:
    push(acme, "support")
    answer = client_of(acme).patch(ONE, body, format="json")
    assert (answer.status_code, answer.json()["error"]["param"].partition(".")[0]) == (400, param)


@pytest.mark.parametrize("value", ["1e999", r'"\ud800"'])
def test_what_the_database_cannot_keep_is_refused(acme: Tenant, push: Push, client_of: Clients, value: str) -> None:
    push(acme, "support")
    answer = client_of(acme).patch(ONE, f'{{"metrics": {{"x": {value}}}}}', content_type="application/json")
    assert answer.status_code == 400
