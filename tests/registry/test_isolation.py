"""Every URL pattern of the resolver, found by walking it, tried by a stranger who has as much under the same names."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from rest_framework.test import APIClient

from audit.api import Management
from audit.models import Event
from config.nowhere import nowhere
from gateway import urls as gateway_urls
from registry.models import Version
from tenants import policies
from tenants.errors import REFUSED
from tenants.isolation import within
from tenants.models import Tenant
from tests.database import web_role
from tests.furnished import Furnished, furnish

Clients = Callable[..., APIClient]
METHODS = ("get", "post", "put", "patch", "delete")
SHARED_NAMES = {"name", "number", "other", "alias", "evaluation_set"}  # what they name, the stranger has as well
OPEN = {"health", "healthz", "readyz", "metrics", "schema", "docs"}  # say the same to everybody
OF_ALL = ("registry/basemodel/",)  # pages of what is no tenant's
TABLES = sorted(each.table for each in policies.owned().values())


@dataclass(frozen=True)
class Endpoint:
    route: str
    name: str
    callback: Any
    parameters: tuple[str, ...]

    @property
    def view(self) -> Any:
        return getattr(self.callback, "view_class", None)

    @property
    def is_management(self) -> bool:
        return isinstance(self.view, type) and issubclass(self.view, Management)

    @property
    def methods(self) -> list[str]:
        return [method for method in METHODS if hasattr(self.view, method)]

    @property
    def names_ids(self) -> bool:
        return bool(set(self.parameters) - SHARED_NAMES)


def walk(patterns: list[Any], prefix: str = "", namespace: str = "") -> Iterator[Endpoint]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            inner = f"{pattern.namespace}:" if pattern.namespace else ""
            yield from walk(pattern.url_patterns, route, namespace + inner)
        elif isinstance(pattern, URLPattern):
            parameters = tuple(pattern.pattern.converters)
            yield Endpoint(route, f"{namespace}{pattern.name}", pattern.callback, parameters)


ALL = sorted(walk(get_resolver().url_patterns), key=lambda pattern: pattern.name)
GATEWAY = [pattern for pattern in ALL if pattern.callback in {each.callback for each in gateway_urls.urlpatterns}]
ENDPOINTS = [pattern for pattern in ALL if pattern.is_management]
ELSEWHERE = [pattern for pattern in ALL if pattern.name in OPEN or pattern.callback is nowhere]
CONSOLE = [pattern for pattern in ALL if pattern not in [*GATEWAY, *ENDPOINTS, *ELSEWHERE]]


@dataclass(frozen=True)
class Scene:
    """What acme has, which a stranger would want, and what the stranger has under the same names."""

    acme: Furnished
    globex: Furnished

    def path(self, endpoint: Endpoint) -> str:
        """A new parameter has to be added here, so that no endpoint is forgotten."""
        acme = self.acme
        known: dict[str, Any] = {"name": "support", "number": 1, "other": 1, "alias": "stable", "slug": "acme"}
        known |= {"signing_key": acme.signing_key.pk, "rollout": acme.rollout.pk, "evaluation": acme.evaluation.pk}
        known |= {"budget": acme.budget.pk}
        known |= {"upload": acme.upload.public_id, "file": acme.upload.file_id, "evaluation_set": "greetings"}
        known |= {"merge": acme.merge.pk, "filename": "config.json", "username": acme.user.username}
        known["pk"] = {"apikeys": acme.key.pk, "webhooks": acme.endpoint.pk}.get(endpoint.name.partition(":")[0])
        missing = [name for name in endpoint.parameters if known.get(name) is None]
        assert not missing, f"{endpoint.name}: say here what of acme's {missing} could name"
        return reverse(endpoint.name, kwargs={name: known[name] for name in endpoint.parameters})

    def pages(self, page: Endpoint) -> list[str]:
        """A new model of the console has to be added here, too."""
        acme = self.acme
        rows: dict[str, Any] = {"registry/adapter": acme.version.adapter, "registry/version": acme.version}
        rows |= {"registry/alias": acme.version.adapter.aliases.get(), "apikeys/apikey": acme.key}
        rows |= {"audit/event": Event.objects.for_tenant(acme.tenant).latest("number"), "auth/user": acme.user}
        rows |= {"registry/basemodel": acme.version.adapter.base_model, "rollouts/rollout": acme.rollout}
        rows |= {"tenants/tenant": acme.tenant, "webhooks/endpoint": acme.endpoint, "metering/budget": acme.budget}
        rows |= {"evaluations/evaluationset": acme.evaluation.set, "evaluations/evaluation": acme.evaluation}
        rows |= {"metering/dailyusage": acme.tenant.usage.get()}
        if labels := re.search(r"\(\?P<app_label>([\w|]+)\)", page.route):
            return [f"/{label}/" for label in labels[1].split("|")]
        if "content_type_id" in page.parameters:
            return ["/r/1/1/"]
        model = "/".join(page.route.split("/")[:2])
        assert not page.parameters or model in rows, f"{page.route}: say here which row of acme's it could name"
        return ["/" + page.route.replace("<path:object_id>", str(rows[model].pk) if page.parameters else "")]

    def state(self) -> dict[str, set[Any]]:
        """Every row of acme's, in every table."""
        with web_role(), within(self.acme.tenant.pk), connection.cursor() as cursor:
            found = {}
            for table in TABLES:
                cursor.execute(f'SELECT t::text FROM "{table}" t')
                found[table] = {row[0] for row in cursor.fetchall()}
            return found


@pytest.fixture
def scene(acme: Tenant, globex: Tenant, push: Callable[..., Version]) -> Scene:
    return Scene(furnish(acme, push, 0), furnish(globex, push, 1))


@contextmanager
def undone() -> Iterator[None]:
    """What is done in here to the stranger's own rows is not there for the next."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def shows(answer: Any, secrets: list[str]) -> list[str]:
    text = answer.getvalue().decode(errors="replace")
    return [secret for secret in secrets if secret in text]


def test_the_walk_finds_what_the_design_names_and_knows_what_each_is() -> None:
    names = {endpoint.name for endpoint in ENDPOINTS}
    assert {"tenants:tenants", "apikeys:keys", "registry:version", "registry:alias", "audit:events"} <= names
    assert {"rollouts:rollout", "webhooks:endpoint", "merges:merge", "evaluations:evaluation"} <= names
    assert len(names) == len(ENDPOINTS) >= 60
    assert {pattern.name for pattern in ELSEWHERE} == OPEN | {"None"}
    assert len(GATEWAY) == len(gateway_urls.urlpatterns), "tests/gateway/test_isolation.py walks these"
    consoles = ("admin:", "search", "engine", "login", "logout", "index")
    strays = [page.route for page in CONSOLE if not page.name.startswith(consoles)]
    assert not strays, f"neither an endpoint, nor open to all, nor a page of the console: {strays}"


def test_every_method_says_its_scope() -> None:
    for endpoint in ENDPOINTS:
        assert set(endpoint.view.scopes) == {method.upper() for method in endpoint.methods}, endpoint.name


def test_a_stranger_sees_and_changes_nothing(scene: Scene, globex: Tenant, client_of: Clients) -> None:
    """Ids of acme's below the stranger's own adapter of the same name are a 404, not only what is below acme's."""
    stranger, before, secrets = client_of(globex), scene.state(), scene.acme.secrets
    for endpoint in ENDPOINTS:
        for method in endpoint.methods:
            for query in ("", "?tenant=acme", "?tenant=globex"):
                called = (endpoint.name, method, query)
                with undone():
                    answer = getattr(stranger, method)(scene.path(endpoint) + query, {}, format="json")
                    assert scene.state() == before, called
                assert not shows(answer, secrets), called
                if "acme" in query or endpoint.names_ids:
                    platform = "platform" in endpoint.view.scopes.values()
                    assert answer.status_code == (403 if platform else 404), called


def test_no_body_reaches_a_strangers_rows(scene: Scene, globex: Tenant, client_of: Clients) -> None:
    stranger, before, acme = client_of(globex), scene.state(), scene.acme
    bodies: dict[str, dict[str, Any]] = {
        "/api/v1/adapters/support/versions": {"files": [acme.upload.file_id]},
        "/api/v1/merges": {"kind": "checkpoint", "sources": [{"adapter": "acme/support", "version": 1}]},
        "/api/v1/evaluations": {"set": "greetings", "model": "acme/support@v1"},
        "/api/v1/adapters/support/rollouts": {"version": 2, "alias": "stable", "evaluation": "acme/greetings"},
    }
    for path, body in bodies.items():
        answer = stranger.post(path, body, format="json")
        assert 400 <= answer.status_code < 500, path
        assert not shows(answer, [secret for secret in acme.secrets if secret not in str(body)]), path
    assert scene.state() == before


def test_nobody_gets_401_and_a_key_for_inference_403(scene: Scene, acme: Tenant, client_of: Clients) -> None:
    limited, anonymous = client_of(acme, "inference"), APIClient()
    before = scene.state()
    for endpoint in ENDPOINTS:
        for method in endpoint.methods:
            path = scene.path(endpoint)
            answers = [getattr(client, method)(path, {}, format="json") for client in (anonymous, limited)]
            assert (answers[0].status_code, answers[0].json()) == (401, REFUSED), (endpoint.name, method)
            assert answers[1].status_code == 403, (endpoint.name, method)
            assert f"'{endpoint.view.scopes[method.upper()]}'" in answers[1].json()["error"]["message"]
    after = scene.state()
    assert {table for table in TABLES if after[table] != before[table]} <= {"apikeys_apikey"}, "its last use is noted"


def test_a_strangers_browser_sees_and_changes_nothing(scene: Scene, settings: Any) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"engine_url": "unix:/nowhere/engine.sock"})
    browser, before, secrets = Client(), scene.state(), scene.acme.secrets
    for page in CONSOLE:
        browser.force_login(scene.globex.user)  # again, since one of the pages logs out
        for path in scene.pages(page):
            for method in ("get", "post"):
                with undone():
                    answer = getattr(browser, method)(path)
                    assert scene.state() == before, (method, path)
                browser.cookies.pop("messages", None)  # the next page would repeat what was asked for
                assert not shows(answer, [secret for secret in secrets if secret not in path]), (method, path)
                if "object_id" in page.parameters and not page.route.startswith(OF_ALL):
                    assert answer.status_code != 200, (method, path)


def test_what_is_open_to_all_shows_nothing_of_anybody(scene: Scene, client_of: Clients) -> None:
    for name in OPEN:
        assert not shows(client_of(scene.globex.tenant).get(reverse(name)), scene.acme.secrets), name


def test_a_cursor_of_acmes_shows_a_stranger_nothing_of_acme(
    scene: Scene, acme: Tenant, globex: Tenant, push: Callable[..., Version], client_of: Clients
) -> None:
    push(acme, "other", 1)
    owner, stranger = client_of(acme), client_of(globex)
    for path in ("/api/v1/keys", "/api/v1/adapters", "/api/v1/adapters/support/versions", "/api/v1/audit"):
        following = owner.get(f"{path}?limit=1").json()["next"]
        assert following, path
        answer = stranger.get(following)
        assert answer.status_code in (200, 404)
        assert not shows(answer, scene.acme.secrets)


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
    assert location.json()["digest"] == scene.acme.version.digest
