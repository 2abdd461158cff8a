"""Conversations that clients replay, and fields that ask for what is served anyway, are taken as OpenAI takes them."""

from typing import Any

import openai
import pytest
from openai.resources.responses.responses import ResponsesConnection

from tests.gateway.conftest import Customer
from tests.gateway.test_responses import create, until_last

HELLO: Any = {"role": "user", "content": "hello"}
PLAIN: dict[str, Any] = {"role": "assistant", "content": "well"}
REPLAYED: dict[str, dict[str, Any]] = {
    "annotations": {"annotations": []},
    "nulls": {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None},
    "no tools called": {"tool_calls": []},
    "what it thought": {"reasoning_content": "hm", "reasoning": None, "reasoning_details": [{"type": "text"}]},
    "a gateway's own": {"provider_specific_fields": {"a": 1}, "thinking_blocks": []},
    "parts": {"content": [{"type": "text", "text": "well"}]},
    "a refusal": {"content": None, "refusal": "well"},
    "a refusal as a part": {"content": [{"type": "refusal", "refusal": "well"}]},
}
SILENT: list[dict[str, Any]] = [{}, {"content": None}, {"content": ""}, {"content": []}, {"refusal": None}]


def prompt_tokens(customer: Customer, turn: dict[str, Any]) -> int:
    body = {"model": "support", "max_tokens": 1, "messages": [HELLO, turn, HELLO]}
    answer = customer.request("POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


@pytest.mark.parametrize("more", REPLAYED.values(), ids=REPLAYED.keys())
def test_what_a_client_keeps_beside_an_answer_changes_no_prompt(buyer: Customer, more: dict[str, Any]) -> None:
    assert prompt_tokens(buyer, {**PLAIN, **more}) == prompt_tokens(buyer, PLAIN)


@pytest.mark.parametrize("more", SILENT)
def test_an_assistants_turn_may_say_nothing(buyer: Customer, more: dict[str, Any]) -> None:
    assert prompt_tokens(buyer, {"role": "assistant", **more}) == prompt_tokens(buyer, PLAIN) - len("well")


@pytest.mark.parametrize(
    ("turn", "param"),
    [
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "system"}, "messages[1].content"),
        ({"role": "user", "content": "x", "annotations": []}, "messages[1].annotations"),
        ({**PLAIN, "tool_calls": [{"id": "a", "type": "function"}]}, "messages[1].tool_calls"),
        ({**PLAIN, "audio": {"id": "a"}}, "messages[1].audio"),
        ({**PLAIN, "content": [{"type": "image_url"}]}, "messages[1].content[0]"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(buyer: Customer, turn: dict[str, Any], param: str) -> None:
    body = {"model": "support", "max_tokens": 1, "messages": [HELLO, turn]}
    answer = buyer.request("POST", "/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("name", ["buyer", "stranger"])
def test_an_answer_is_replayed_as_the_client_dumps_it(
    buyer: Customer, stranger: Customer, name: str, base_name: str
) -> None:
    customer = {"buyer": buyer, "stranger": stranger}[name]
    messages: list[Any] = [HELLO]
    for _ in range(2):
        answer = customer.openai.chat.completions.create(model=base_name, messages=messages, max_tokens=4)
        messages += [answer.choices[0].message.model_dump(), HELLO]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > len("hello") * 3


def test_the_older_and_the_newer_name_of_the_limit_may_say_the_same(buyer: Customer) -> None:
    assert buyer.chat("support", tokens=3, max_completion_tokens=3)
    with pytest.raises(openai.BadRequestError) as refused:
        buyer.chat("support", tokens=3, max_completion_tokens=4)
    assert refused.value.param == "max_tokens"


def test_a_response_is_replayed_as_the_client_dumps_it(buyer: Customer) -> None:
    first = buyer.openai.responses.create(model="support", input="hello", max_output_tokens=4)
    thought: dict[str, Any] = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [],
        "encrypted_content": "x",
        "status": None,
    }
    items: list[Any] = [HELLO, thought, *[item.model_dump() for item in first.output], HELLO]
    plain: list[Any] = [HELLO, {"role": "assistant", "content": first.output_text}, HELLO]
    told = [buyer.openai.responses.create(model="support", input=i, max_output_tokens=4) for i in (items, plain)]
    assert len({answer.usage.input_tokens for answer in told if answer.usage}) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"text": {"verbosity": "medium"}},
        {"text": {"format": {"type": "text"}, "verbosity": None}},
        {"reasoning": {"effort": None}},
        {"reasoning": {"effort": "none", "summary": None}},
    ],
)
def test_a_response_may_ask_for_what_it_gets_anyway(buyer: Customer, more: dict[str, Any]) -> None:
    answer = buyer.openai.responses.create(model="support", input="hello", max_output_tokens=2, **more)
    assert answer.output_text


@pytest.mark.parametrize(("field", "value"), [("text", {"verbosity": "low"}), ("reasoning", {"effort": "high"})])
def test_a_response_may_not_ask_for_more(buyer: Customer, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        buyer.openai.responses.create(model="support", input="hello", **{field: value})
    assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")


def test_an_item_that_is_referred_to_is_known_within_its_websocket_alone(buyer: Customer, stranger: Customer) -> None:
    def follow(connection: ResponsesConnection, model: str, item: str) -> Any:
        create(connection, [HELLO, {"type": "item_reference", "id": item}, HELLO], model=model)
        return until_last(connection)[-1]

    with buyer.openai.responses.connect() as own, stranger.openai.responses.connect() as other:
        create(own)
        first = until_last(own)[-1].response
        second = follow(own, "support", first.output[0].id)
        spelled: list[Any] = [HELLO, {"role": "assistant", "content": first.output_text}, HELLO]
        whole = buyer.openai.responses.create(model="support", input=spelled, max_output_tokens=1)
        assert whole.usage is not None
        assert second.response.usage.input_tokens == whole.usage.input_tokens
        refused = follow(other, "notes", first.output[0].id)
    assert (refused.error.code, refused.error.param) == ("item_not_found", "input[1].id")
    assert "'store'" in refused.error.message
    assert "previous_response_id" in refused.error.message


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_every_chunk_tells_what_was_used_so_far_where_the_client_asks(buyer: Customer, endpoint: str) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    asked: dict[str, Any] = {"model": "support", "max_tokens": 6, "n": 2, "stream": True, "stream_options": options}
    chunks: list[Any] = (
        list(buyer.openai.chat.completions.create(messages=[HELLO], **asked))
        if endpoint == "chat"
        else list(buyer.openai.completions.create(prompt="hello", **asked))
    )
    assert all(chunk.usage.prompt_tokens == chunks[-1].usage.prompt_tokens for chunk in chunks)
    for choice in range(2):
        counts = [c.usage.completion_tokens for c in chunks if c.choices and c.choices[0].index == choice]
        assert counts == sorted(counts)
        assert counts[-1] <= 6
    assert chunks[-1].usage.completion_tokens <= 12
    assert not chunks[-1].choices
