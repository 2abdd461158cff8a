import asyncio
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.resources.responses.responses import ResponsesConnection

from gateway import websocket
from tests.gateway.conftest import Customer

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]
LAST = ("response.completed", "response.incomplete", "error")


def ask(customer: Customer, say: Any = "hello", **options: Any) -> Any:
    options = {"model": "support", "max_output_tokens": 12, "temperature": 0, **options}
    return customer.openai.responses.create(input=say, **options)


def create(connection: ResponsesConnection, say: Any = "hello", **options: Any) -> None:
    event: Any = {"type": "response.create", "model": "support", "input": say, "max_output_tokens": 12}
    event |= {"temperature": 0, **options}
    connection.send(event)


def until_last(connection: ResponsesConnection) -> list[Any]:
    events: list[Any] = []
    while not events or events[-1].type not in LAST:
        events.append(connection.recv())
    return events


@pytest.fixture
def connection(buyer: Customer) -> Iterator[ResponsesConnection]:
    with buyer.openai.responses.connect() as open_connection:
        yield open_connection


def kinds(events: list[Any]) -> list[str]:
    """Their types, repeated ones once."""
    return [kind for kind, _ in itertools.groupby(event.type for event in events)]


def test_the_answer_is_the_one_that_chat_gives(buyer: Customer) -> None:
    response = ask(buyer)
    assert response.output_text == buyer.chat("support")
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage.output_tokens == 12
    assert response.usage.total_tokens == response.usage.input_tokens + 12
    assert (response.model, response.store) == ("gate-acme/support", False)


def test_an_answer_that_ends_by_itself_is_complete(buyer: Customer) -> None:
    whole = ask(buyer, max_output_tokens=40).output_text
    stop = next(character for character in whole[3:] if character.isascii())
    response = ask(buyer, max_output_tokens=40, extra_body={"stop": stop})
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert response.output_text == whole[: whole.index(stop)]


def test_a_stream_numbers_its_events_and_ends_with_the_whole(buyer: Customer) -> None:
    events = list(ask(buyer, stream=True))
    assert kinds(events) == [*EVENTS, "response.incomplete"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-1].response.output_text == ask(buyer).output_text


def test_instructions_speak_for_the_system(buyer: Customer) -> None:
    told = ask(buyer, "hi", instructions="be brief")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    spelled_out = ask(buyer, turns)
    assert told.output_text == spelled_out.output_text
    assert told.usage.input_tokens == spelled_out.usage.input_tokens
    assert told.instructions == "be brief"


def test_logprobs_come_when_included(buyer: Customer) -> None:
    response = ask(buyer, include=["message.output_text.logprobs"], top_logprobs=2)
    positions = response.output[0].content[0].logprobs
    assert [len(position.top_logprobs) for position in positions] == [2] * 12
    assert not ask(buyer).output[0].content[0].logprobs


def test_nothing_is_stored_for_other_connections(buyer: Customer) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(buyer, previous_response_id=ask(buyer).id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


def test_a_websocket_answers_as_http_does(buyer: Customer, connection: ResponsesConnection) -> None:
    create(connection)
    events = until_last(connection)
    assert kinds(events) == [*EVENTS, "response.incomplete"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == ask(buyer).output_text


def test_an_answer_over_a_websocket_that_ends_by_itself_is_complete(
    buyer: Customer, connection: ResponsesConnection
) -> None:
    stop = next(character for character in buyer.chat("support", tokens=40)[3:] if character.isascii())
    create(connection, max_output_tokens=40, stop=stop)
    assert until_last(connection)[-1].type == "response.completed"


def test_a_turn_may_build_on_one_of_the_same_connection(buyer: Customer, connection: ResponsesConnection) -> None:
    create(connection, instructions="not kept")
    first = until_last(connection)[-1].response
    create(connection, "and then?", previous_response_id=first.id)
    second = until_last(connection)[-1].response
    spelled_out = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "and then?"},
    ]
    assert second.usage.input_tokens == ask(buyer, spelled_out).usage.input_tokens
    assert second.output_text == ask(buyer, spelled_out).output_text


def test_one_lane_answers_in_turn_and_two_lanes_side_by_side(connection: ResponsesConnection) -> None:
    long = {"max_output_tokens": 200, "ignore_eos": True}
    for say, lane in (("first", "a"), ("second", "a"), ("third", "b")):
        create(connection, say, stream_id=lane, **(long if say == "first" else {}))
    order: list[tuple[str, str]] = []
    while len(order) < 6:
        event: Any = connection.recv()
        if event.type in ("response.created", *LAST):
            order.append((event.stream_id, event.type.rpartition(".")[2]))
    assert [kind for lane, kind in order if lane == "a"] == ["created", "incomplete"] * 2
    assert order.index(("b", "incomplete")) < order.index(("a", "incomplete"))


BAD_EVENTS: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"type": "response.steer"}, 400, "type", "invalid_value"),
    ({"type": "response.create"}, 400, "model", "missing_required_parameter"),
    ({"type": "response.create", "model": "support"}, 400, "input", "missing_required_parameter"),
    ({"type": "response.create", "model": "notes", "input": "x"}, 404, "model", "model_not_found"),
    ({"type": "response.create", "model": "support", "input": "x", "stream_id": 3}, 400, "stream_id", "invalid_value"),
    (
        {"type": "response.create", "model": "support", "input": "x" * 600},
        400,
        "input",
        "context_length_exceeded",
    ),
    (
        {"type": "response.create", "model": "support", "input": "x", "previous_response_id": "resp_1"},
        400,
        "previous_response_id",
        "previous_response_not_found",
    ),
]


@pytest.mark.parametrize(("event", "status", "param", "code"), BAD_EVENTS)
def test_a_bad_event_is_told_and_the_connection_goes_on(
    connection: ResponsesConnection, event: Any, status: int, param: str | None, code: str
) -> None:
    connection.send(event)
    told: Any = connection.recv()
    assert (told.type, told.status, told.error.param, told.error.code) == ("error", status, param, code)
    create(connection)
    assert until_last(connection)[-1].type == "response.incomplete"


@pytest.mark.parametrize("frame", ["{", "[]", "null", b"\x00\x01", '{"type": "response.create", "input": NaN}'])
def test_a_frame_that_is_no_json_object_is_told(connection: ResponsesConnection, frame: str | bytes) -> None:
    connection.send_raw(frame)
    told: Any = connection.recv()
    assert (told.type, told.error.code) == ("error", "invalid_json")


def test_too_many_waiting_requests_are_refused_and_not_kept(connection: ResponsesConnection) -> None:
    for _ in range(12):
        create(connection, max_output_tokens=100, ignore_eos=True)
    endings: list[Any] = []
    while len(endings) < 12:
        event: Any = connection.recv()
        if event.type in LAST:
            endings.append(event)
    refused = [event for event in endings if event.type == "error"]
    assert refused
    assert {(event.status, event.error.code) for event in refused} == {(429, "engine_busy")}
    assert refused[0].error.headers["retry-after"] == "1"


def test_what_waits_and_is_under_way_in_a_connection_is_bounded(connection: ResponsesConnection) -> None:
    create(connection, max_output_tokens=200, ignore_eos=True)
    large = "x" * (websocket.MAX_FRAME * 3 // 4)
    for lane in (None, None, "b"):
        create(connection, large, stream_id=lane)
    endings: list[Any] = []
    while len(endings) < 4:
        event: Any = connection.recv()
        if event.type in LAST:
            endings.append(event)
    refused, answered, *waited = endings
    assert (refused.status, refused.stream_id, refused.error.type) == (429, "b", "rate_limit_error")
    assert str(websocket.MAX_HELD) in refused.error.message
    assert answered.type == "response.incomplete"
    assert [event.error.code for event in waited] == ["context_length_exceeded"] * 2
    create(connection, large, stream_id="b")
    assert until_last(connection)[-1].error.code == "context_length_exceeded"


class Waiting(websocket.ResponsesConsumer):
    """A connection whose turns never come."""

    async def respond(self, text: str, lane: str | None) -> None:
        await asyncio.Event().wait()


async def test_what_waits_takes_no_more_room_than_its_text() -> None:
    waiting = Waiting()
    frame = '{"type": "response.create", "input": [[]' + ", []" * 100_000 + "]}"
    await waiting.receive('{"type": "response.create"}')
    before = sys.getallocatedblocks()
    await waiting.receive(frame)
    assert sys.getallocatedblocks() - before < 10_000
    for lane in waiting._lanes.values():
        lane.cancel()
