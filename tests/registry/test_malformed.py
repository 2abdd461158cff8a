"""What is no text and no sane JSON, tried at every management endpoint: an answer in JSON, and never our fault."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from rest_framework.test import APIClient

from audit.parsing import DEEPEST
from tenants.models import Tenant
from tests.registry.test_isolation import ENDPOINTS, Scene, scene, undone

Clients = Callable[..., APIClient]
__all__ = ["scene"]

FIELDS = [
    *("adapters", "events", "expected", "expires_at", "filename", "files", "guardrails", "key", "kind", "metrics"),
    *("model", "name", "notes", "part_ids", "period", "public_key", "reason", "schema", "scopes", "set", "slug"),
    *("sources", "steps", "tokens", "url", "version", "weight"),
]


def everywhere(value: bytes) -> bytes:
    """An object that has the value in every field that some endpoint knows."""
    return b"{%s}" % b",".join(b'"%s":%s' % (field.encode(), value) for field in FIELDS)


BODIES = {
    "lists in lists": b"[" * 1000 + b"]" * 1000,
    "objects that don't end": b'{"a":' * 3000,
    "more lists than a stack holds": b"[" * 100_000,
    "objects in fields": everywhere(b'{"a":' * 500 + b"1" + b"}" * 500),
    "half a character": everywhere(rb'"\ud800"'),
    "half a character in lists": everywhere(rb'["\udfff"]'),
    "half a character in objects": everywhere(rb'{"a": {"b": "\ud800"}}'),
    "half a character for a name": rb'{"\ud800": 1}',
    "half a character for an inner name": everywhere(rb'{"\ud800": 1}'),
    "a zero character": everywhere(rb'"\u0000"'),
    "a zero character for a name": rb'{"\u0000": 1}',
    "bytes that are no text": b'{"name": "\xff\xfe"}',
    "a name twice": b'{"name": "a", "name": "b"}',
    "a number without end": b'{"version": %s}' % (b"9" * 5000),
    "no number": b'{"version": NaN, "weight": Infinity}',
    "no object": b"[]",
}
FORM = "multipart/form-data; boundary=x"
FIELD = b"--x\r\nContent-Disposition: form-data; name%s\r\n\r\n%s\r\n--x--\r\n"
FORMS = {
    "a zero character": FIELD % (b'="name"', b"a\0b"),
    "a zero character for a name": FIELD % (b'="a\0b"', b"x"),
    "half a character for a name": FIELD % (b"*=utf-7''%2B2AA-", b"x"),
    "half a character for a file's name": FIELD % (b"=\"file\"; filename*=utf-7''%2B2AA-", b"x"),
    "a zero character for a file's name": FIELD % (b'="file"; filename="a\0b"', b"x"),
    "a character set that is none": FIELD % (b"=\"file\"; filename*=bogus''a", b"x"),
    "no end": b"--x\r\n",
}
HEADERS = {
    "cookie": 'sessionid="aaaaaaaaaa\\000"',
    "user-agent": "\xed\xa0\x80\0",
    "x-request-id": "\xff\0",
    "range": "bytes=\xff",
}


def ask(client: Any, method: str, path: str, *body: Any, **options: Any) -> Any:
    return client.generic(method, path, *body, **options)


def calls(scene: Scene) -> Iterator[tuple[bool, str, str]]:
    """Whether it is an operator's, the method, and a path that leads to something of acme's."""
    for endpoint in ENDPOINTS:
        for method in endpoint.methods:
            yield "platform" in endpoint.view.scopes.values(), method.upper(), scene.path(endpoint)


def check(answer: Any, called: object) -> None:
    away = answer.status_code == 503 and answer.json()["error"]["code"] == "engine_unavailable"  # there is none here
    assert answer.status_code < 500 or away, called
    if answer.status_code >= 400:
        assert answer.json()["error"].keys() >= {"message", "type", "param", "code"}, called


def test_no_body_query_or_header_is_a_fault_of_ours(scene: Scene, acme: Tenant, client_of: Clients) -> None:
    clients = {False: client_of(acme), True: client_of(None)}
    for operator, method, path in calls(scene):
        ask_here = partial(ask, clients[operator], method)
        with undone():
            if method != "GET":
                for title in ("objects in fields", "half a character in lists", "a zero character"):
                    check(ask_here(path, BODIES[title], content_type="application/json"), (method, path, title))
            if method == "POST":
                form = FORMS["a zero character"]
                check(ask_here(path, form, content_type=FORM), (method, path, "a form"))
            for query in ("a=%00", "limit=%00&cursor=%00&action=%00&tenant=%00"):
                answer = ask_here(f"{path}?{query}")
                check(answer, (method, path, query))
                assert answer.status_code >= 400, (method, path, query)
            check(ask_here(path, headers=HEADERS), (method, path, "headers"))


@pytest.mark.parametrize("title", BODIES)
def test_whoever_reads_a_body_says_400_to_it(title: str, acme: Tenant, client_of: Clients) -> None:
    answer = ask(client_of(acme), "POST", "/api/v1/keys", BODIES[title], content_type="application/json")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("parse_error", "invalid_request")


@pytest.mark.parametrize("title", sorted(set(FORMS) - {"a zero character for a file's name"}))
def test_whoever_reads_a_form_says_400_to_it(title: str, acme: Tenant, client_of: Clients) -> None:
    path = "/api/v1/evaluation-sets"
    assert ask(client_of(acme), "POST", path, FORMS[title], content_type=FORM).status_code == 400


def test_the_fault_is_named_by_its_place(acme: Tenant, client_of: Clients) -> None:
    answer = client_of(acme).post("/api/v1/keys", {"name": "a", "scopes": ["x", {"y": "a\0"}]}, format="json")
    assert "scopes[1].y" in answer.json()["error"]["message"]


def test_as_many_levels_as_are_taken_do_no_harm(scene: Scene, acme: Tenant, client_of: Clients) -> None:
    """Nested metrics and a nested schema, all the way to the database and back."""
    nested: Any = 1
    for _ in range(DEEPEST - 2):
        nested = {"not": nested}
    client, path = client_of(acme), "/api/v1/adapters/support"
    changed = client.patch(f"{path}/versions/1", {"metrics": {"a": nested}}, format="json")
    assert changed.status_code == 200
    assert client.get(f"{path}/versions/1").json()["metrics"] == {"a": nested}
    scene.acme.version.adapter.rollouts.all().delete()
    schema: Any = {}
    for _ in range(DEEPEST - 2):
        schema = {"not": schema}
    plan = {"version": 2, "start": False, "schema": schema}
    assert client.post(f"{path}/rollouts", plan, format="json").status_code in (201, 409)
