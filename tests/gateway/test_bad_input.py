"""What a client may do wrong over HTTP. Each answer is in OpenAI's shape and names the parameter."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import openai
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from tests.gateway.conftest import Customer
from tests.processes import Platform

Issue = Callable[..., tuple[str, str]]

HELLO = [{"role": "user", "content": "hello"}]
REFUSED = {
    "message": "The API key is missing, or not valid.",
    "type": "invalid_request_error",
    "param": None,
    "code": "invalid_api_key",
}


def handshake(url: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(url.replace("http", "ws") + "/v1/responses", additional_headers=headers)
    answer = refused.value.response
    return answer.status_code, json.loads(answer.body)["error"]


def refusals(url: str, headers: dict[str, str]) -> list[tuple[int, dict[str, Any]]]:
    """How every endpoint, the WebSocket among them, refuses these headers."""
    paths = ("models", "models/support")
    answers = [httpx.get(f"{url}/v1/{path}", headers=headers, timeout=60) for path in paths]
    for endpoint in ("chat/completions", "completions", "responses"):
        answers.append(httpx.post(f"{url}/v1/{endpoint}", headers=headers, json={}, timeout=60))
    told = [(answer.status_code, answer.json()["error"]) for answer in answers]
    return [*told, handshake(url, headers)]


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic abc",
        "Bearer ly_0123456789ab_" + "0" * 64,
        "Bearer " + "x" * 600,
    ],
)
def test_a_key_that_is_missing_malformed_or_made_up_is_401(buyer: Customer, authorization: str) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    assert refusals(buyer.url, headers) == [(401, REFUSED)] * 6


def test_a_key_with_a_changed_character_is_401(buyer: Customer) -> None:
    changed = buyer.key[:-1] + ("0" if buyer.key[-1] != "0" else "1")
    assert refusals(buyer.url, {"Authorization": f"Bearer {changed}"}) == [(401, REFUSED)] * 6


def test_an_expired_key_is_401_with_the_same_body(platform: Platform, buyer: Customer, issue: Issue) -> None:
    key, number = issue("inference", expires_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    past = "UPDATE apikeys_apikey SET expires_at = now() - interval '1 second' WHERE id = %s RETURNING id"
    assert len(platform.rows(past, number)) == 1
    assert refusals(buyer.url, {"Authorization": f"Bearer {key}"}) == [(401, REFUSED)] * 6


def test_a_key_without_the_scope_is_403_and_told_which(buyer: Customer, issue: Issue) -> None:
    key, _ = issue("adapters:read")
    for status, error in refusals(buyer.url, {"Authorization": f"Bearer {key}"}):
        assert (status, error["code"]) == (403, "missing_scope")
        assert "'inference'" in error["message"]


def test_an_operators_key_may_not_infer(platform: Any, buyer: Customer) -> None:
    for status, error in refusals(buyer.url, {"Authorization": f"Bearer {platform.operator_key}"}):
        assert (status, error["code"]) == (403, "missing_scope")


def test_a_revoked_key_is_401_within_a_second(platform: Any, buyer: Customer, issue: Issue) -> None:
    key, number = issue("inference")
    held = Customer(buyer.url, buyer.slug, key)
    held.chat("support")
    with held.openai.responses.connect() as connection:
        platform.call("POST", f"keys/{number}/revoke", buyer.key)
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            held.request("GET", "/v1/models")  # it keeps being used
        assert refusals(buyer.url, {"Authorization": f"Bearer {key}"}) == [(401, REFUSED)] * 6
        connection.send({"type": "response.create", "model": "support", "input": "x"})
        told: Any = connection.recv()
        assert (told.status, told.error.code) == (401, "invalid_api_key")
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            connection.recv()


def test_unauthenticated_answers_say_how_to_authenticate(buyer: Customer) -> None:
    assert httpx.get(f"{buyer.url}/v1/models").headers["www-authenticate"] == "Bearer"


CHAT: dict[str, Any] = {"model": "support", "messages": HELLO}
COMPLETION: dict[str, Any] = {"model": "support", "prompt": "x"}
RESPONSE: dict[str, Any] = {"model": "support", "input": "x"}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {**CHAT, "messages": []}, "messages"),
    ("chat/completions", {**CHAT, "messages": "hello"}, "messages"),
    ("chat/completions", {**CHAT, "messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user"}]}, "messages[0].content"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    ("chat/completions", {**CHAT, "temperature": "hot"}, "temperature"),
    ("chat/completions", {**CHAT, "temperature": -0.1}, "temperature"),
    ("chat/completions", {**CHAT, "top_p": 1.1}, "top_p"),
    ("chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens"),
    ("chat/completions", {**CHAT, "max_tokens": -1}, "max_tokens"),
    ("chat/completions", {**CHAT, "max_tokens": 10**30}, "max_tokens"),
    ("chat/completions", {**CHAT, "max_tokens": 1.5}, "max_tokens"),
    ("chat/completions", {**CHAT, "n": 10**6}, "n"),
    ("chat/completions", {**CHAT, "seed": 2**70}, "seed"),
    ("chat/completions", {**CHAT, "stop": ["x"] * 1000}, "stop"),
    ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 99}, "top_logprobs"),
    ("chat/completions", {**CHAT, "stream": "yes"}, "stream"),
    ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools"),
    ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, "response_format"),
    ("chat/completions", {**CHAT, "chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ("chat/completions", {**CHAT, "cache_salt": "mine"}, "cache_salt"),
    ("chat/completions", {**CHAT, "stop_token_ids": [10**6]}, "stop_token_ids"),
    ("chat/completions", {**CHAT, "stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ("chat/completions", {**CHAT, "min_tokens": 4, "max_tokens": 3}, "min_tokens"),
    ("chat/completions", {**CHAT, "min_tokens": -1}, "min_tokens"),
    ("chat/completions", {**CHAT, "repetition_penalty": 0}, "repetition_penalty"),
    ("chat/completions", {**CHAT, "bad_words": [""]}, "bad_words[0]"),
    ("chat/completions", {**CHAT, "bad_words": ["x"] * 1000}, "bad_words"),
    ("chat/completions", {**CHAT, "use_beam_search": True}, "use_beam_search"),
    ("chat/completions", {**CHAT, "allowed_token_ids": [1]}, "allowed_token_ids"),
    ("chat/completions", {**CHAT, "guided_regex": "a+"}, "guided_regex"),
    ("chat/completions", {**CHAT, "add_generation_prompt": False}, "add_generation_prompt"),
    ("completions", {**COMPLETION, "min_tokens": 17}, "min_tokens"),
    ("completions", {**COMPLETION, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ("chat/completions", {**CHAT, "model": 3}, "model"),
    ("chat/completions", {"messages": HELLO}, "model"),
    ("completions", {**COMPLETION, "prompt": []}, "prompt"),
    ("completions", {**COMPLETION, "prompt": ""}, "prompt"),
    ("completions", {**COMPLETION, "prompt": [1, 2, 10**6]}, "prompt"),
    ("completions", {**COMPLETION, "prompt": [-1]}, "prompt[0]"),
    ("completions", {**COMPLETION, "prompt": ["x"] * 65}, "prompt"),
    ("completions", {**COMPLETION, "prompt": ["x"] * 33, "n": 2}, "n"),
    ("completions", {**COMPLETION, "suffix": "y"}, "suffix"),
    ("completions", {**COMPLETION, "echo": True}, "echo"),
    ("completions", {**COMPLETION, "logprobs": -1}, "logprobs"),
    ("responses", {**RESPONSE, "input": []}, "input"),
    ("responses", {**RESPONSE, "input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
    ("responses", {**RESPONSE, "background": True}, "background"),
    ("responses", {**RESPONSE, "max_output_tokens": -5}, "max_output_tokens"),
    ("responses", {**RESPONSE, "truncation": "auto"}, "truncation"),
]


@pytest.mark.parametrize(("endpoint", "body", "param"), BAD, ids=[f"{e}-{p}-{i}" for i, (e, _, p) in enumerate(BAD)])
def test_a_body_that_makes_no_sense_is_400_and_names_the_parameter(
    buyer: Customer, endpoint: str, body: dict[str, Any], param: str
) -> None:
    answer = buyer.request("POST", f"/v1/{endpoint}", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]
    assert error["code"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"temperature": NaN}', b'{"a": "\\ud800"}', b"[" * 10**5]
)
def test_a_body_that_is_no_json_object_is_400(buyer: Customer, body: bytes) -> None:
    for endpoint in ("chat/completions", "completions", "responses"):
        answer = buyer.request("POST", f"/v1/{endpoint}", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("tokens", [1, 100])
def test_a_prompt_longer_than_the_context_is_400_with_both_numbers(buyer: Customer, tokens: int) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        buyer.openai.completions.create(model="support", prompt="x" * 500, max_tokens=tokens + 12)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert "512" in refused.value.message
    assert str(512 + tokens) in refused.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_for_a_stream_is_a_status_and_no_event(buyer: Customer, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        buyer.openai.chat.completions.create(
            model="support", messages=[{"role": "user", "content": "x" * 600}], stream=stream
        )
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_a_prompt_that_just_fits_is_served(buyer: Customer) -> None:
    answer = buyer.openai.completions.create(model="support", prompt="x" * 500, max_tokens=12)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 500


def test_a_body_over_the_limit_is_413(buyer: Customer) -> None:
    answer = buyer.request("POST", "/v1/chat/completions", content=b" " * (8 * 2**20 + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/nothing", "/v1/chat", "/v1/chat/completions/x", "/v1/%00", "/v1/модель"]
)
def test_an_unknown_address_is_404_in_the_same_shape(buyer: Customer, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = buyer.request(method, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/chat/completions", "POST"), ("PUT", "/v1/responses", "POST"), ("POST", "/v1/models", "GET, HEAD")],
)
def test_a_wrong_method_is_405_and_names_the_right_one(buyer: Customer, method: str, path: str, allowed: str) -> None:
    answer = buyer.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"]["code"] == "method_not_allowed"


def test_what_asks_for_nothing_is_accepted(buyer: Customer) -> None:
    answer = buyer.request(
        "POST",
        "/v1/chat/completions",
        json={
            **CHAT,
            "max_tokens": 2,
            "user": "someone",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "tools": [],
            "response_format": {"type": "text"},
            "logit_bias": None,
            "stop": None,
        },
    )
    assert answer.status_code == 200


def test_what_vllm_s_clients_send_without_asking_for_anything_is_accepted(buyer: Customer) -> None:
    body: dict[str, Any] = {
        "use_beam_search": False,
        "length_penalty": 1.0,
        "early_stopping": False,
        "stop_token_ids": [],
        "min_tokens": 0,
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "repetition_penalty": 1,
        "bad_words": [],
        "priority": 0,
        "detokenize": True,
        **dict.fromkeys(("best_of", "truncate_prompt_tokens", "allowed_token_ids", "logits_processors", "guided_json")),
        **dict.fromkeys(("guided_regex", "guided_choice", "guided_grammar", "prompt_logprobs", "structured_outputs")),
    }
    for path, question in (("chat/completions", CHAT), ("completions", COMPLETION)):
        answer = buyer.request("POST", f"/v1/{path}", json={**question, **body, "max_tokens": 2})
        assert answer.status_code == 200, answer.text
