import asyncio
from typing import Any

import openai
import pytest

from tests.gateway.conftest import Customer

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def ask(customer: Customer, model: str, **options: Any) -> Any:
    options = {"messages": HELLO, "max_tokens": 12, "temperature": 0, **options}
    return customer.openai.chat.completions.create(model=model, **options)


def test_a_stream_says_what_the_whole_answer_says(buyer: Customer) -> None:
    whole = ask(buyer, "support")
    chunks = list(ask(buyer, "support", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], whole.usage.total_tokens)
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_usage_comes_with_the_last_chunk_even_if_nobody_asked(buyer: Customer) -> None:
    *_, last = ask(buyer, "support", stream=True)
    assert last.choices[0].finish_reason
    assert last.usage.completion_tokens <= 12


def test_usage_counts_the_prompt_once_for_several_answers(buyer: Customer, base_name: str) -> None:
    one = ask(buyer, base_name, extra_body={"ignore_eos": True})
    three = ask(buyer, base_name, n=3, extra_body={"ignore_eos": True})
    assert one.usage.completion_tokens == 12
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 36
    assert three.usage.total_tokens == one.usage.prompt_tokens + 36


def test_several_greedy_answers_are_equal_and_several_sampled_ones_are_not(buyer: Customer) -> None:
    greedy = ask(buyer, "support", n=3)
    assert [choice.index for choice in greedy.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in greedy.choices}) == 1
    sampled = ask(buyer, "support", n=3, temperature=1, seed=7, max_tokens=24)
    assert len({choice.message.content for choice in sampled.choices}) == 3


def test_a_seed_repeats_every_answer_streamed_or_not(buyer: Customer) -> None:
    settings: dict[str, Any] = {"n": 2, "temperature": 1.5, "seed": -5}
    whole = [choice.message.content for choice in ask(buyer, "support", **settings).choices]
    texts = ["", ""]
    for chunk in ask(buyer, "support", **settings, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == whole


def test_each_name_serves_its_version(buyer: Customer, stranger: Customer, base_name: str) -> None:
    first, second, base = (buyer.chat(name) for name in ("support@v1", "support@v2", base_name))
    assert len({first, second, base, stranger.chat("notes")}) == 4
    assert buyer.chat("support") == buyer.chat("gate-acme/support@stable") == first


def test_headers_tell_the_request_the_version_and_the_time(buyer: Customer, base_name: str) -> None:
    for stream in (False, True):
        body = {"model": "support", "messages": HELLO, "max_tokens": 2, "stream": stream}
        answer = buyer.request("POST", "/v1/chat/completions", json=body, headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-adapter-version"] == "v1"
        assert answer.headers["x-request-id"] == "mine-1"
        assert int(answer.headers["openai-processing-ms"]) >= 0
    body["model"] = base_name
    plain = buyer.request("POST", "/v1/chat/completions", json=body, headers={"X-Request-ID": "two words"})
    assert plain.headers["x-request-id"].startswith("req_")
    assert "x-adapter-version" not in plain.headers
    assert plain.text.endswith("data: [DONE]\n\n")


def test_logprobs_are_those_of_the_tokens(buyer: Customer) -> None:
    told = ask(buyer, "support", logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(told) == 12
    for position in told:
        assert len(position.top_logprobs) == 3
        assert position.logprob == position.top_logprobs[0].logprob <= 0
        assert position.token == position.top_logprobs[0].token
    assert all(
        not position.top_logprobs for position in ask(buyer, "support", logprobs=True).choices[0].logprobs.content
    )
    streamed = [
        position.bytes
        for chunk in ask(buyer, "support", logprobs=True, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for position in choice.logprobs.content
    ]
    assert streamed == [position.bytes for position in told]


def test_a_stop_string_ends_the_answer(buyer: Customer) -> None:
    whole = buyer.chat("support", tokens=40)
    stop = next(character for character in whole[3:] if character.isascii())
    cut = ask(buyer, "support", max_tokens=40, stop=stop).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_without_a_limit_the_answer_may_fill_the_context(buyer: Customer, base_name: str) -> None:
    answer = ask(buyer, base_name, max_tokens=openai.NOT_GIVEN, extra_body={"ignore_eos": True})
    assert answer.usage.total_tokens == 512
    assert answer.choices[0].finish_reason == "length"


def test_content_may_come_in_parts_and_developers_speak_for_the_system(buyer: Customer) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    split = ask(buyer, "support", messages=[{"role": "developer", "content": "x"}, {"role": "user", "content": parts}])
    plain = ask(buyer, "support", messages=[{"role": "system", "content": "x"}, {"role": "user", "content": "a\nb"}])
    assert split.choices[0].message.content == plain.choices[0].message.content
    assert split.usage.prompt_tokens == plain.usage.prompt_tokens


async def test_sixteen_streams_of_two_tenants_over_four_models_answer_as_alone(
    buyer: Customer, stranger: Customer, base_name: str
) -> None:
    models = [(buyer, "support@v1"), (buyer, "support@v2"), (stranger, "notes"), (stranger, base_name)]
    calls = [(customer, model, f"question {index}") for index in range(4) for customer, model in models]
    alone = [customer.chat(model, say, tokens=30) for customer, model, say in calls]

    async def streamed(customer: Customer, model: str, say: str) -> str:
        stream = await customer.async_openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": say}],
            max_tokens=30,
            temperature=0,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*(streamed(*call) for call in calls)) == alone
    metrics = buyer.request("GET", "/metrics").text
    mixed = [
        line for line in metrics.splitlines() if line.startswith("lorayard_engine_steps_total{") and "adapters=" in line
    ]
    assert any(int(line.split('adapters="')[1].split('"')[0]) >= 3 for line in mixed), mixed


def test_metrics_count_the_tokens_and_name_no_tenant(buyer: Customer) -> None:
    ask(buyer, "support")
    metrics = buyer.request("GET", "/metrics").text
    assert 'lorayard_gateway_tokens_total{kind="completion",route="chat.completions"}' in metrics
    assert 'lorayard_gateway_requests_total{route="chat.completions",status="200"}' in metrics
    assert "lorayard_gateway_first_token_seconds_bucket" in metrics
    assert "gate-acme" not in metrics
    assert "support" not in metrics


@pytest.mark.parametrize("extra", [{"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.0}, {"temperature": 0}])
def test_whatever_leaves_one_token_is_greedy(buyer: Customer, extra: dict[str, Any]) -> None:
    answer = buyer.request(
        "POST",
        "/v1/chat/completions",
        json={"model": "support", "messages": HELLO, "max_tokens": 12, "temperature": 1.0, **extra},
    )
    assert answer.json()["choices"][0]["message"]["content"] == buyer.chat("support")


def test_a_forced_answer_is_said_and_its_likelihood_told(buyer: Customer) -> None:
    def scored(answer: str, **options: Any) -> Any:
        options = {"logprobs": True, "max_tokens": None, **options}
        return ask(buyer, "support", extra_body={"forced_answer": answer}, **options)

    drawn = ask(buyer, "support", logprobs=True, max_tokens=1)
    first = drawn.choices[0].logprobs.content[0]
    told = scored("never said: é<|end|>!")
    assert told.choices[0].message.content == "never said: é<|end|>!"
    assert told.usage.completion_tokens == len(told.choices[0].logprobs.content) == 22
    assert all(entry.logprob < first.logprob for entry in told.choices[0].logprobs.content[:1])
    for fault in ({"max_tokens": 3}, {"stop": "x"}, {"n": 2}):
        with pytest.raises(openai.BadRequestError) as refused:
            scored("x", **fault)
        assert refused.value.param == "forced_answer"
    with pytest.raises(openai.BadRequestError) as long:
        scored("x" * 600)
    assert long.value.code == "context_length_exceeded"
