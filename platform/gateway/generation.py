"""Knows how one call becomes sequences in the engine, and their events one stream; knows no shape of any answer.

A Run owns its sequences: whoever starts one closes it, and closing cancels in the engine what has not finished.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from gateway import engine, meter, metrics, recorder, shadows, uses
from gateway.authentication import Caller
from gateway.errors import OF_A_VERSION, ApiError, ContextExceeded
from gateway.exchange import Exchange
from gateway.schemas.request import Request
from gateway.sequences import asked_of_engine, at_most
from inference.client import (
    AdapterMissing,
    AdapterUnavailable,
    Delta,
    EngineClient,
    EngineError,
    Event,
    Finished,
    Generation,
    Internal,
    PositionLogprobs,
    PromptTooLong,
    Started,
)
from metering.models import Call, Outcome
from rollouts.observations import Observation
from rollouts.routing import Route

logger = logging.getLogger(__name__)

T = TypeVar("T")
Indexed = tuple[int, Delta | Finished]

FAULTS = (AdapterMissing, AdapterUnavailable, Internal)  # a version's or the platform's own, and no client's


@dataclass(slots=True)
class Usage:
    """Tokens of a whole call. A prompt counts once, however many answers it has."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(slots=True)
class Whole:
    """What one sequence has said so far; in the end all of it. reason: "stop" or "length", empty until then."""

    text: str = ""
    positions: list[PositionLogprobs] = field(default_factory=list)
    reason: str = ""

    def add(self, event: Delta | Finished) -> None:
        match event:
            case Delta():
                self.text += event.text
                self.positions.extend(event.logprobs)
            case Finished():
                self.reason = event.reason


class Run:
    """The sequences of one call, all of them admitted by the engine. choices: how many of them share each prompt."""

    def __init__(
        self, exchange: Exchange, route: Route, sequences: Sequence[Generation], choices: int, call: Call
    ) -> None:
        client: EngineClient = engine.client()
        self.exchange = exchange
        self.target = route.target
        self.usage = Usage()
        self._call = call
        self._outcome, self._code = Outcome.CANCELLED, ""  # unless it fails or comes to its end
        self._sequences = sequences
        self._streams = [client.generate(sequence) for sequence in sequences]
        self._choices = choices
        self._counts = [0] * len(sequences)
        self._finished = 0
        self._seated = False
        self._merged = _merge(self._streams)
        self._early: list[Indexed] = []
        trial = route.trial
        self._seen = Observation(trial, trial.arm) if trial is not None and trial.counted else None

    @classmethod
    async def start(
        cls,
        exchange: Exchange,
        caller: Caller,
        route: Route,
        prompts: Sequence[Sequence[int]],
        request: Request,
        forced: Sequence[int] = (),
    ) -> Self:
        """Answers when the engine has taken every sequence. Raises EngineError, ContextExceeded or
        BudgetExceeded; then none runs.

        forced: what every answer shall be, where it is not to be drawn. A canary that fails before its first token
        fails nobody: the stable version serves instead. So of a canary this answers when each sequence has a token, and
        nothing is told to the client before.
        """
        sequences = asked_of_engine(exchange, caller, route.target, prompts, request, forced)
        call = await meter.admit(exchange, caller, route.target, at_most(sequences, request.choices))
        try:
            return await cls._start(exchange, caller, route, sequences, request, call)
        except BaseException as error:
            meter.end(call, *_end_of(error))
            raise

    @classmethod
    async def _start(
        cls,
        exchange: Exchange,
        caller: Caller,
        route: Route,
        sequences: Sequence[Generation],
        request: Request,
        call: Call,
    ) -> Self:
        run = cls(exchange, route, sequences, request.choices, call)
        fallback = route.trial.fallback if route.trial is not None else None
        try:
            await run._begin(hold=fallback is not None)
        except EngineError as error:
            run._fail(error)
            await run._let_go()
            if isinstance(error, PromptTooLong):
                raise ContextExceeded(error.limit, error.tokens, param=request.content) from None
            if not isinstance(error, FAULTS) or fallback is None:
                raise
            logger.warning("a canary failed a request, which the stable version serves: %s", error.code)
            meter.serve(call, fallback)
            again = [replace(sequence, digest=fallback.digest) for sequence in sequences]
            return await cls._start(exchange, caller, Route(fallback), again, request, call)
        except BaseException:
            await run._let_go()
            raise
        uses.put(caller.tenant.pk, route.target)
        return run

    def name(self, response: str) -> None:
        """Tells the id that the client knows the answer by."""
        if self._seen is not None:
            self._seen.response = response

    def so_far(self, index: int) -> Usage:
        """What one sequence has used until now."""
        return Usage(prompt=len(self._sequences[index].prompt), completion=self._counts[index])

    async def events(self) -> AsyncIterator[Indexed]:
        """Every sequence's Deltas and its Finished, by the sequence's index. Raises EngineError."""
        while self._early:
            yield self._early.pop(0)
        try:
            async for index, event in self._merged:
                if not isinstance(event, Started):
                    self._note(index, event)
                    yield index, event
        except EngineError as error:
            self._fail(error)
            raise

    async def collect(self) -> "list[Whole]":
        """Every sequence to its end. Raises EngineError."""
        wholes = [Whole() for _ in self._streams]
        async for index, event in self.events():
            wholes[index].add(event)
        return wholes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        try:
            await self._let_go()
        finally:
            meter.end(self._call, self._outcome, self._code)

    async def _let_go(self) -> None:
        """Stops what still runs. What was made for it is counted, read or not."""
        try:
            await self._merged.aclose()
            await asyncio.gather(*(stream.aclose() for stream in self._streams))
        finally:
            for index, stream in enumerate(self._streams):
                self._count(index, max(self._counts[index], stream.made))
            self._observed()

    def _note(self, index: int, event: Delta | Finished) -> None:
        match event:
            case Delta():
                self.exchange.token()
                self._count(index, self._counts[index] + len(event.tokens))
                if self._seen is not None:
                    self._seen.hear(event.text, event.tokens, choice=index)
            case Finished():
                self._count(index, event.completion_tokens)
                self._finished += 1
                if self._finished == len(self._streams):
                    self._outcome = Outcome.FINISHED
                if self._seen is not None and index == 0:
                    self._seen.finish = event.reason

    def _fail(self, error: EngineError) -> None:
        """What is not the version's own failure is no observation of it."""
        self._outcome, self._code = _end_of(error)
        if self._seen is not None and isinstance(error, OF_A_VERSION):
            self._seen.fail(error.code)
        else:
            self._seen = None

    def _observed(self) -> None:
        """Hands over what was seen, once, however the call ended; and the copy, once it was answered."""
        seen, self._seen = self._seen, None
        if seen is None:
            return
        if self._finished == len(self._streams):
            seen.finished(seen.finish)
            shadows.send(seen.trial, self._sequences, self._call)
        else:
            seen.cold = seen.cold or not self._seated  # what it waited for may have been a load
            seen.left()
        recorder.put(seen)

    def _count(self, index: int, tokens: int) -> None:
        """So many tokens has this sequence now. Counted as they come, so that a call which is cut short counts too."""
        metrics.TOKENS.labels(self.exchange.route, "completion").inc(max(0, tokens - self._counts[index]))
        self._counts[index] = tokens
        self._call.completion = self.usage.completion = sum(self._counts)

    async def _begin(self, *, hold: bool) -> None:
        """hold: until each sequence has said something."""
        started = await _all(_first(stream) for stream in self._streams)
        self._seated = True
        if self._seen is not None:
            self._seen.cold = any(one.cold for one in started)
        for one in started[:: self._choices]:
            self.usage.prompt += one.prompt_tokens
            self.usage.cached += one.cached_tokens
        self._call.prompt, self._call.cached = self.usage.prompt, self.usage.cached
        metrics.TOKENS.labels(self.exchange.route, "prompt").inc(self.usage.prompt)
        metrics.TOKENS.labels(self.exchange.route, "cached").inc(self.usage.cached)
        if hold:
            await _all(self._await(index) for index in range(len(self._streams)))

    async def _await(self, index: int) -> None:
        """A sequence's first event after it has started, kept for `events`."""
        event = await anext(self._streams[index])
        assert not isinstance(event, Started)
        self._note(index, event)
        self._early.append((index, event))


def _end_of(error: BaseException) -> tuple[Outcome, str]:
    """How a call ended that this ended."""
    match error:
        case EngineError() | ApiError():
            return Outcome.FAILED, error.code or ""
        case asyncio.CancelledError() | GeneratorExit():
            return Outcome.CANCELLED, ""
    return Outcome.FAILED, "internal_error"


async def _all(steps: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Side by side. The first failure is everyone's."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step) for step in steps]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _first(stream: AsyncIterator[Event]) -> Started:
    event = await anext(stream)
    if not isinstance(event, Started):
        raise Internal("The engine's first event was not Started.")
    return event


async def _merge(streams: Sequence[AsyncIterator[Event]]) -> AsyncGenerator[tuple[int, Event]]:
    """Every stream's events as they come, each with its stream's index. The first failure is everyone's."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    waiting: dict[asyncio.Task[Any], int] = {}

    def step(index: int) -> None:
        waiting[asyncio.create_task(_next(streams[index]))] = index

    try:
        for index in range(len(streams)):
            step(index)
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                event = task.result()
                if event is not None:
                    step(index)
                    yield index, event
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _next(stream: AsyncIterator[Event]) -> Event | None:
    return await anext(stream, None)
