from typing import Any

from tests.gateway.conftest import Customer


def ask(customer: Customer, prompt: Any, **options: Any) -> Any:
    options = {"max_tokens": 6, "temperature": 0, **options}
    return customer.openai.completions.create(model="support", prompt=prompt, **options)


def test_a_text_its_tokens_and_a_stream_of_either_say_the_same(buyer: Customer) -> None:
    text = ask(buyer, "hello").choices[0].text
    by_logprobs = ask(buyer, "hello", logprobs=0).choices[0].logprobs
    assert len(by_logprobs.tokens) == len(by_logprobs.token_logprobs) == len(by_logprobs.text_offset) == 6
    assert "".join(chunk.choices[0].text for chunk in ask(buyer, "hello", stream=True)) == text


def test_no_token_of_the_logprobs_is_lost_and_their_bytes_are_the_answer_s(buyer: Customer) -> None:
    asked = {"model": "support", "temperature": 1.5, "seed": 3, "max_tokens": 40, "ignore_eos": True}
    body = {**asked, "prompt": "x", "logprobs": 20}
    told = buyer.request("POST", "/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert {len(place) for place in told["top_logprobs"]} <= {20, 21}
    assert any(token.startswith("bytes:\\x") for token in told["tokens"])
    body = {**asked, "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20}
    (choice,) = buyer.request("POST", "/v1/chat/completions", json=body).json()["choices"]
    places = choice["logprobs"]["content"]
    assert {len({rival["token"] for rival in place["top_logprobs"]}) for place in places} == {20}
    said = b"".join(bytes(place["bytes"]) for place in places)
    assert said.decode(errors="replace") == choice["message"]["content"]


def test_what_vllm_s_users_ask_for_is_served(buyer: Customer) -> None:
    plain = ask(buyer, "hello", max_tokens=12, extra_body={"ignore_eos": True})
    least = ask(buyer, "hello", max_tokens=12, extra_body={"min_tokens": 12})
    assert least.usage.completion_tokens == 12
    first = plain.choices[0].text[0]
    stopped = ask(buyer, "hello", stop=[first])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")
    included = ask(buyer, "hello", stop=[first], extra_body={"include_stop_str_in_output": True})
    assert included.choices[0].text == first
    other = ask(buyer, "hello", max_tokens=12, extra_body={"repetition_penalty": 50.0, "ignore_eos": True})
    assert other.choices[0].text != plain.choices[0].text


def test_several_prompts_are_answered_in_order(buyer: Customer) -> None:
    alone = [ask(buyer, prompt).choices[0].text for prompt in ("one", "two", "three")]
    together = ask(buyer, ["one", "two", "three"], n=2)
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text for choice in together.choices] == [text for text in alone for _ in range(2)]
    streamed = [""] * 6
    for chunk in ask(buyer, ["one", "two", "three"], n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == [choice.text for choice in together.choices]


def test_prompts_may_be_token_ids(buyer: Customer) -> None:
    one = ask(buyer, [5, 6, 7])
    assert one.usage.prompt_tokens == 3
    two = ask(buyer, [[5, 6, 7], [8, 9]])
    assert two.choices[0].text == one.choices[0].text
    assert two.usage.prompt_tokens == 5


def test_sixteen_tokens_are_the_default(buyer: Customer) -> None:
    answer = buyer.openai.completions.create(model="support", prompt="x", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_usage_in_a_stream_comes_apart_when_asked_for(buyer: Customer) -> None:
    *chunks, last = ask(buyer, "hello", stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.prompt_tokens) == ([], 5)
