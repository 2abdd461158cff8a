"""Aliases as applications meet them: a move and a rollback are the next request's, and pins hold until archived."""

import openai
import pytest

from tests.gateway.conftest import Customer

ALIAS = "/api/v1/adapters/support/aliases/canary"


def served(customer: Customer, model: str) -> str:
    """The version that answers now."""
    answer = customer.openai.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=1
    )
    return answer.headers["x-adapter-version"]


def test_a_rollback_is_honoured_by_the_next_request(buyer: Customer, stranger: Customer) -> None:
    assert buyer.request("PUT", ALIAS, json={"version": 1, "expected": None}).status_code == 200
    first = served(buyer, "support@canary")
    assert buyer.request("PUT", ALIAS, json={"version": 2, "expected": 1}).status_code == 200
    second = served(buyer, "support@canary")
    assert first != second
    assert stranger.request("POST", f"{ALIAS}/rollback", json={"expected": 2}).status_code == 404
    assert buyer.request("POST", f"{ALIAS}/rollback", json={"expected": 2}).json()["version"] == 1
    assert served(buyer, "support@canary") == first == served(buyer, "support@v1")
    assert served(buyer, "support@v2") == second
    assert buyer.request("DELETE", ALIAS).status_code == 204
    with pytest.raises(openai.NotFoundError):
        served(buyer, "support@canary")
