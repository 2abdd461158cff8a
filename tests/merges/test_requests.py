"""Merges as a tenant may and may not ask for them over the API."""

from typing import Any

import pytest

from audit.services import SYSTEM
from merges import models
from merges.models import Merge, State
from merges.services import leases
from merges.services import requests as asked
from registry.models import BaseModel, Version
from registry.services import ensure_adapter
from tenants.models import Tenant
from tests.merges.asking import BOTH, COMBINE, INTO_BASE, ONE, Clients, Pushes, Run, ask, show


def test_strangers_and_keys_for_other_adapters_find_nothing_to_merge(
    two: list[Version], acme: Tenant, globex: Tenant, client_of: Clients
) -> None:
    told = ask(client_of(acme), COMBINE)
    stranger = client_of(globex)
    confined = client_of(acme, "adapters:read", "adapters:write", adapters=("support",))
    for body in (INTO_BASE, COMBINE):
        ask(stranger, body, 404)
    ask(confined, COMBINE, 404)
    for client in (stranger, confined):
        assert client.get("/api/v1/merges").json()["results"] == []
        for method, path in (("get", ""), ("delete", ""), ("post", "/cancel"), ("get", "/files/config.json")):
            assert getattr(client, method)(f"/api/v1/merges/{told['id']}{path}").status_code == 404
    own = ask(confined, INTO_BASE)
    assert [row["id"] for row in confined.get("/api/v1/merges").json()["results"]] == [own["id"]]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kind": "checkpoint", "sources": BOTH}, "sources"),
        ({"kind": "checkpoint", "sources": [{**ONE, "weight": 2}]}, "sources"),
        ({**INTO_BASE, "method": "linear"}, "method"),
        ({**COMBINE, "sources": BOTH[:1]}, "sources"),
        ({**COMBINE, "sources": [{**ONE, "weight": 0}, ONE]}, "sources.0.weight"),
        ({**COMBINE, "method": "magic"}, "method"),
        ({**COMBINE, "method": "ties"}, "density"),
        ({**COMBINE, "method": "dare_linear", "density": 0}, "density"),
        ({**COMBINE, "rank": 8}, "rank"),
        ({**COMBINE, "shell": "rm"}, "shell"),
        ({"kind": "version", "sources": BOTH, "method": "cat"}, "adapter"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(
    body: dict[str, Any], param: str, two: list[Version], acme: Tenant, client_of: Clients
) -> None:
    assert ask(client_of(acme), body, 400)["error"]["param"] == param
    assert not Merge.objects.exists()


def test_only_ready_versions_of_one_base_model_are_merged(
    two: list[Version], acme: Tenant, client_of: Clients, push: Pushes, base: BaseModel
) -> None:
    client = client_of(acme)
    push(acme, "support", 1, validate=False)
    unready = {"adapter": "support", "version": 2}
    assert ask(client, {**INTO_BASE, "sources": [unready]}, 409)["error"]["code"] == "version_not_ready"
    other = BaseModel.objects.create(name="other", source=base.source, spec=base.spec)
    foreign = ensure_adapter(acme, "foreign", actor=SYSTEM)
    type(foreign).objects.filter(pk=foreign.pk).update(base_model=other)
    assert ask(client, {**COMBINE, "adapter": "foreign"}, 400)["error"]["code"] == "merge_malformed"


def test_a_tenant_has_so_many_merges_under_way_and_keeps_so_many_bytes(
    two: list[Version],
    acme: Tenant,
    globex: Tenant,
    client_of: Clients,
    monkeypatch: pytest.MonkeyPatch,
    push: Pushes,
    run: Run,
) -> None:
    client = client_of(acme)
    told = [ask(client, INTO_BASE) for _ in range(models.MOST_PENDING)]
    assert ask(client, INTO_BASE, 409)["error"]["code"] == "too_many_merges"
    push(globex, "support")
    ask(client_of(globex), INTO_BASE)  # another tenant's are not counted
    run(told[0])
    size = show(client, told[0])["size"]
    monkeypatch.setattr(leases, "MOST_BYTES", size + 1)
    assert run(told[1]) == State.FAILED
    assert show(client, told[1])["finding"]["rule"] == "no-room"
    monkeypatch.setattr(asked, "MOST_BYTES", size)
    assert ask(client, INTO_BASE, 413)["error"]["code"] == "merges_too_large"
