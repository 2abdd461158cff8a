"""Addresses and methods that no API serves are refused in the shape of its errors, found by walking those it serves."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from django.urls import reverse
from rest_framework.test import APIClient

from tenants.models import Tenant
from tests.registry.test_isolation import ENDPOINTS, Endpoint

Clients = Callable[..., APIClient]
METHODS = ("get", "post", "put", "patch", "delete", "options")
NUMBERS = {"number": 1, "other": 1}
IDS = ("pk", "signing_key", "rollout", "evaluation", "merge", "budget")
NOWHERE = ["/v1", "/api/v1", "/api/v1/", "/v1/uploads/", "/v1/files/", "/v1/uploads/none/none", "/api/v1/%00/none"]


def path(endpoint: Endpoint) -> str:
    """Of nothing that is there."""
    known: dict[str, Any] = {**NUMBERS, **dict.fromkeys(IDS, UUID(int=0))}
    return reverse(endpoint.name, kwargs={name: known.get(name, "none") for name in endpoint.parameters})


def refusal(answer: Any) -> tuple[int, Any]:
    """The status, and the error's code. The error has its four fields and nothing stands beside it."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return answer.status_code, error["code"]


def test_beyond_and_beside_every_address_there_is_nothing(acme: Tenant, client_of: Clients) -> None:
    known = [path(endpoint) + more for endpoint in ENDPOINTS for more in ("/", "/none/none/none")]
    for client in (APIClient(enforce_csrf_checks=True), client_of(acme)):
        for method in METHODS:
            found = {refusal(getattr(client, method)(address, {}, format="json")) for address in [*known, *NOWHERE]}
            assert found == {(404, "not_found")}


def test_a_method_that_an_address_lacks_is_405_whatever_the_key_may(acme: Tenant, client_of: Clients) -> None:
    every, none = client_of(acme), client_of(acme, "inference")
    for endpoint in ENDPOINTS:
        for method in set(METHODS) - set(endpoint.methods):
            for client in (every, none):
                answer = getattr(client, method)(path(endpoint), {}, format="json")
                assert refusal(answer) == (405, "method_not_allowed"), (method, endpoint.name)
                assert set(endpoint.methods) <= {allowed.lower() for allowed in answer.headers["allow"].split(", ")}


@pytest.mark.django_db
def test_nobody_learns_which_methods_there_are() -> None:
    for endpoint in ENDPOINTS:
        for method in METHODS:
            answer = getattr(APIClient(), method)(path(endpoint), {}, format="json")
            assert refusal(answer) == (401, "invalid_api_key"), (method, endpoint.name)
