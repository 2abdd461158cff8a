"""Every endpoint of the management API, found by walking the URLs, tried by a stranger who holds every scope."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from rest_framework.test import APIClient

from apikeys.models import ApiKey
from audit.api import Management
from audit.models import Event
from audit.services import SYSTEM
from evaluations.models import Evaluation
from evaluations.services import create_set, request_evaluation
from merges.models import Merge
from merges.services import merge_into_base
from metering.models import Budget
from metering.services import create_budget
from registry.intake import SigningKey, Upload
from registry.models import Adapter, Alias, Version
from registry.services import add_signing_key, create_upload
from tenants.errors import REFUSED
from tenants.models import Tenant

Clients = Callable[..., APIClient]
METHODS = ("get", "post", "put", "patch", "delete")
CREATES_ITS_OWN = {"registry:versions"}  # a POST here is about the caller's own adapter of that name


@dataclass(frozen=True)
class Endpoint:
    name: str
    view: type[Management[Any]]
    parameters: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        return [method for method in METHODS if hasattr(self.view, method)]


def walk(patterns: list[Any], prefix: str = "", namespace: str = "") -> Iterator[Endpoint]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            inner = f"{pattern.namespace}:" if pattern.namespace else ""
            yield from walk(pattern.url_patterns, route, namespace + inner)
        elif isinstance(pattern, URLPattern) and route.startswith(("api/v1/", "v1/uploads", "v1/files")):
            view: Any = pattern.callback.view_class  # type: ignore[attr-defined]
            yield Endpoint(f"{namespace}{pattern.name}", view, tuple(pattern.pattern.converters))


ENDPOINTS = sorted(walk(get_resolver().url_patterns), key=lambda endpoint: endpoint.name)
EACH = pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)


@dataclass(frozen=True)
class Scene:
    """What acme has. Its adapter, key and versions are what a stranger would want."""

    tenant: Tenant
    key: ApiKey
    version: Version
    upload: Upload
    evaluation: Evaluation
    merge: Merge
    signing_key: SigningKey
    budget: Budget

    def path(self, endpoint: Endpoint) -> str:
        """A new parameter has to be added here, so that no endpoint is forgotten."""
        known = {"slug": "acme", "pk": self.key.pk, "name": "support", "number": 1, "other": 1, "alias": "stable"}
        known |= {"signing_key": self.signing_key.pk, "rollout": UUID(int=0)}  # rollouts have tests of their own
        known |= {"upload": self.upload.public_id, "file": self.upload.file_id}
        known |= {"budget": self.budget.pk}
        known |= {"merge": self.merge.pk, "filename": "config.json"}
        known |= {"evaluation_set": "greetings", "evaluation": self.evaluation.pk}
        return reverse(endpoint.name, kwargs={name: known[name] for name in endpoint.parameters})

    def secrets(self) -> list[str]:
        ids = [self.tenant.pk, self.key.pk, self.version.pk, self.version.adapter.pk, self.merge.pk]
        return [str(pk) for pk in ids] + [
            self.version.digest,
            self.upload.pk.hex,
            str(self.evaluation.pk),
            str(self.budget.pk),
            "acme",
        ]

    def state(self) -> list[Any]:
        rows: list[Any] = [list(Tenant.objects.filter(pk=self.tenant.pk).values())]
        rows += [
            list(ApiKey.objects.for_tenant(self.tenant).values()),
            list(Adapter.objects.for_tenant(self.tenant).values()),
        ]
        rows += [list(queryset.for_tenant(self.tenant).values()) for queryset in (Version.objects, Alias.objects)]
        rows += [list(queryset.for_tenant(self.tenant).values()) for queryset in (Upload.objects, SigningKey.objects)]
        rows.append(list(Evaluation.objects.for_tenant(self.tenant).values()))
        rows.append(list(Merge.objects.for_tenant(self.tenant).values()))
        rows.append(list(Budget.objects.for_tenant(self.tenant).values()))
        return [*rows, Event.objects.for_tenant(self.tenant).count()]


@pytest.fixture
def scene(acme: Tenant, globex: Tenant, push: Callable[..., Version], client_of: Clients) -> Scene:
    version = push(acme, "support")
    client_of(acme)
    signing_key = add_signing_key(acme, "ci", base64.b64encode(bytes(32)).decode(), actor=SYSTEM)
    upload = create_upload(acme, filename="a.zip", purpose="adapter", bytes=3, actor=SYSTEM)
    item = b'{"messages": [{"role": "user", "content": "hi"}], "scorer": "exact", "expected": "hello"}'
    greetings = create_set(acme, "greetings", item, actor=SYSTEM)
    evaluation = request_evaluation(acme, greetings, "support", actor=SYSTEM)
    merge = merge_into_base(version, actor=SYSTEM)
    budget = create_budget(acme, period="day", tokens=10, actor=SYSTEM)
    return Scene(acme, ApiKey.objects.for_tenant(acme).get(), version, upload, evaluation, merge, signing_key, budget)


def test_the_walk_finds_what_the_design_names() -> None:
    names = {endpoint.name for endpoint in ENDPOINTS}
    assert {"tenants:tenants", "apikeys:keys", "registry:version", "registry:alias", "audit:events"} <= names
    assert len(names) == len(ENDPOINTS) >= 14


@EACH
def test_every_method_says_its_scope(endpoint: Endpoint) -> None:
    assert issubclass(endpoint.view, Management)
    assert set(endpoint.view.scopes) == {method.upper() for method in endpoint.methods}


@EACH
def test_a_stranger_sees_and_changes_nothing(
    scene: Scene, globex: Tenant, client_of: Clients, endpoint: Endpoint
) -> None:
    stranger, before = client_of(globex), scene.state()
    for method in endpoint.methods:
        for query in ("", "?tenant=acme", "?tenant=globex"):
            answer = getattr(stranger, method)(scene.path(endpoint) + query, {}, format="json")
            text = answer.content.decode()
            assert not any(secret in text for secret in scene.secrets()), (method, query)
            if "acme" in query or (endpoint.parameters and endpoint.name not in CREATES_ITS_OWN):
                assert answer.status_code == (403 if "platform" in endpoint.view.scopes.values() else 404), (
                    method,
                    query,
                )
    assert scene.state() == before


@EACH
def test_nobody_gets_401_and_a_key_for_inference_403(
    scene: Scene, acme: Tenant, client_of: Clients, endpoint: Endpoint
) -> None:
    before = scene.state()
    limited = client_of(acme, "inference")
    before[1] = list(ApiKey.objects.for_tenant(acme).values("pk"))
    for method in endpoint.methods:
        path = scene.path(endpoint)
        anonymous = getattr(APIClient(), method)(path, {}, format="json")
        assert (anonymous.status_code, anonymous.json()) == (401, REFUSED)
        refused = getattr(limited, method)(path, {}, format="json")
        assert (refused.status_code, refused.json()) == (403, REFUSED)
    assert list(ApiKey.objects.for_tenant(acme).values("pk")) == before[1]
    assert scene.state()[2:5] == before[2:5]


def test_a_cursor_of_acmes_shows_a_stranger_nothing_of_acme(
    scene: Scene, acme: Tenant, globex: Tenant, push: Callable[..., Version], client_of: Clients
) -> None:
    push(acme, "other", 1)
    push(acme, "support", 1)
    owner, stranger = client_of(acme), client_of(globex)
    for path in ("/api/v1/keys", "/api/v1/adapters", "/api/v1/adapters/support/versions", "/api/v1/audit"):
        following = owner.get(f"{path}?limit=1").json()["next"]
        assert following, path
        answer = stranger.get(following)
        assert answer.status_code in (200, 404)
        assert not any(secret in answer.content.decode() for secret in scene.secrets())


def test_a_key_confined_to_an_adapter_does_not_see_the_others(
    scene: Scene, acme: Tenant, push: Callable[..., Version], client_of: Clients
) -> None:
    push(acme, "query", 1)
    confined = client_of(acme, "adapters:read", "adapters:write", adapters=("query",))
    assert [row["name"] for row in confined.get("/api/v1/adapters").json()["results"]] == ["query"]
    paths = ["", "/versions", "/versions/1", "/aliases", "/aliases/stable"]
    assert {confined.get(f"/api/v1/adapters/support{path}").status_code for path in paths} == {404}
    assert confined.post("/api/v1/adapters/support/versions", {}, format="multipart").status_code == 404
    assert confined.post("/api/v1/adapters", {"name": "new"}, format="json").status_code == 404
    move = {"version": 1, "expected": 1}
    assert confined.put("/api/v1/adapters/support/aliases/stable", move, format="json").status_code == 404


def test_an_operator_must_say_whose_adapters(scene: Scene, client_of: Clients) -> None:
    operator = client_of(None)
    answer = operator.get("/api/v1/adapters")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tenant")
    assert operator.get("/api/v1/adapters?tenant=acme").json()["results"][0]["name"] == "support"
    location = operator.get("/api/v1/adapters/support/versions/1?tenant=acme")
    assert location.json()["digest"] == scene.version.digest
