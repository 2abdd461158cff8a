"""Knows how one call becomes sequences in the engine, and their events one stream; knows no shape of any answer.

A Run owns its sequences: whoever starts one closes it, and closing cancels in the engine what has not finished.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from gateway import engine, metrics
from gateway.authentication import Caller
from gateway.errors import ContextExceeded
from gateway.exchange import Exchange
from gateway.prompts import context_of
from gateway.schemas import Request
from inference.client import (
    Delta,
    EngineClient,
    Event,
    Finished,
    Generation,
    Internal,
    PositionLogprobs,
    PromptTooLong,
    Started,
)
from registry.services import Target

Indexed = tuple[int, Delta | Finished]


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
        self, exchange: Exchange, target: Target, streams: Sequence[AsyncGenerator[Event]], choices: int
    ) -> None:
        self.exchange = exchange
        self.target = target
        self.usage = Usage()
        self._streams = streams
        self._choices = choices
        self._counts = [0] * len(streams)
        self._merged = _merge(streams)

    @classmethod
    async def start(
        cls,
        exchange: Exchange,
        caller: Caller,
        target: Target,
        prompts: Sequence[Sequence[int]],
        request: Request,
        forced: Sequence[int] = (),
    ) -> Self:
        """Answers when the engine has taken every sequence. Raises EngineError or ContextExceeded; then none runs.

        forced: what every answer shall be, where it is not to be drawn.
        """
        sequences = _sequences(exchange, caller, target, prompts, request, forced)
        client: EngineClient = engine.client()
        run = cls(exchange, target, [client.generate(sequence) for sequence in sequences], request.choices)
        try:
            await run._begin()
        except PromptTooLong as error:
            await run.aclose()
            raise ContextExceeded(error.limit, error.tokens, param=request.content) from None
        except BaseException:
            await run.aclose()
            raise
        return run

    async def events(self) -> AsyncIterator[Indexed]:
        """Every sequence's Deltas and its Finished, by the sequence's index. Raises EngineError."""
        async for index, event in self._merged:
            match event:
                case Delta():
                    self.exchange.token()
                    self._count(index, self._counts[index] + len(event.tokens))
                case Finished():
                    self._count(index, event.completion_tokens)
            if not isinstance(event, Started):
                yield index, event

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
        await self._merged.aclose()
        for stream in self._streams:
            await stream.aclose()

    def _count(self, index: int, tokens: int) -> None:
        """So many tokens has this sequence now. Counted as they come, so that a call which is cut short counts too."""
        metrics.TOKENS.labels(self.exchange.route, "completion").inc(max(0, tokens - self._counts[index]))
        self._counts[index] = tokens
        self.usage.completion = sum(self._counts)

    async def _begin(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_first(stream)) for stream in self._streams]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        for task in tasks[:: self._choices]:
            started = task.result()
            self.usage.prompt += started.prompt_tokens
            self.usage.cached += started.cached_tokens
        metrics.TOKENS.labels(self.exchange.route, "prompt").inc(self.usage.prompt)
        metrics.TOKENS.labels(self.exchange.route, "cached").inc(self.usage.cached)


def _sequences(
    exchange: Exchange,
    caller: Caller,
    target: Target,
    prompts: Sequence[Sequence[int]],
    request: Request,
    forced: Sequence[int],
) -> list[Generation]:
    """Prompt by prompt, choice by choice. Choices of one prompt draw from seeds that follow one another."""
    sequences = []
    for prompt in prompts:
        room = context_of(target.base) - len(prompt)
        sampling = request.sampling(len(forced) or request.limit or min(request.default_limit, room))
        if forced:
            sampling = replace(sampling, forced=tuple(forced), ignore_eos=True)
        for choice in range(request.choices):
            seed = None if sampling.seed is None else (sampling.seed + choice) % 2**64
            sequences.append(
                Generation(
                    request_id=exchange.id,
                    prompt=prompt,
                    sampling=replace(sampling, seed=seed),
                    digest=target.digest,
                    share=caller.share,
                    weight=caller.tenant.weight,
                    salt=caller.salt,
                    priority=caller.priority,
                )
            )
    return sequences


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
