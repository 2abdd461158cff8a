"""Knows how gRPC calls become sequences and the engine's events become messages; never tenants, names or HTTP."""

import argparse
import asyncio
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from grpc_health.v1 import health_pb2, health_pb2_grpc

from adapters.store import Store
from inference import engine_pb2 as pb
from inference import engine_pb2_grpc, memory, residency
from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.cost import token_cost
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Begun, Ended, Event, Limits, Logprobs, Scheduler, Token
from inference.engine.sequence import Sequence
from inference.errors import EngineError, Internal, InvalidRequest
from inference.lora.arena import Arena
from inference.lora.disk import DiskCache
from inference.lora.slots import SlotPool
from inference.lora.source import Loader, Pace
from inference.models.load import Model
from inference.text import TextStream
from inference.vocabulary import Vocabulary

log = logging.getLogger(__name__)
T = TypeVar("T")

BLOCK = 16  # tokens
FRESH = 5.0  # seconds for which a forward pass proves the engine's health
MAX_TOP_LOGPROBS = 20
WINDOW = 128  # tokens that a sequence may be ahead of its reader


@dataclass(frozen=True)
class Left:
    """The caller wanted no more; so many tokens were made for it."""

    made: int


class Service(engine_pb2_grpc.EngineServicer, health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Runs on an event loop; the engine has a thread of its own and calls back through `deliver`."""

    def __init__(self, model: Model, tokenizer: Any, arguments: argparse.Namespace) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary.of(tokenizer)
        self._ids = itertools.count()
        self._streams: dict[int, asyncio.Queue[Event | Left]] = {}
        spec, share = model.spec, memory.shares(model, BLOCK, arguments)
        self._loader = Loader(
            DiskCache(Store(arguments.store), arguments.cache, share.disk),
            spec,
            model.sites.frozen,
            model.device,
            host_limit=share.host,
            largest=share.arena,
            pace=Pace(timeout=arguments.load_timeout),
            busy=lambda: model.device.type == "cpu" and bool(self._scheduler.running),
        )
        loader, waking = self._loader, self._waking
        arena = Arena(share.arena, model.device, lambda copy: waking(loader.fill(copy)), loader.turns.take)
        limits = Limits(spec.context_length, spec.vocab_size, arguments.max_rows, arguments.max_batch_tokens)
        slots = SlotPool(
            arguments.slots,
            model.sites,
            lambda digest: waking(loader.load(digest)),
            room=arena,
            cost=partial(token_cost, spec),
        )
        self._scheduler = Scheduler(limits, BlockPool(share.blocks, BLOCK), slots, model.stops)
        self._runner = Runner(model, share.blocks, BLOCK)
        if not arguments.eager:
            self._runner.record(limits.rows, self._scheduler.context)
        self.engine = Engine(self._scheduler, self._runner, self._deliver, check=arguments.check)

    async def Generate(self, calls: AsyncIterator[pb.GenerateCall], context: Any) -> AsyncIterator[pb.GenerateEvent]:
        sequence = self._sequence(await _asked(calls))
        events = self._open(sequence)
        following = asyncio.create_task(self._follow(calls, sequence, events))
        text, told = self._text(sequence), 0  # the engine may be some tokens ahead
        try:
            while True:
                event = await events.get()
                match event:
                    case Begun():
                        yield pb.GenerateEvent(started=_started(sequence))
                    case Token():
                        told += 1
                        yield pb.GenerateEvent(delta=self._delta(text, event))
                        if text.stopped:
                            yield _finished(sequence, "stop", told)
                            return
                    case Left():
                        yield _finished(sequence, "left", event.made)
                        return
                    case Ended(error=None):
                        if rest := text.flush():
                            yield pb.GenerateEvent(delta=pb.Delta(text=rest))
                        yield _finished(sequence, event.reason, told)
                        return
                    case Ended():
                        raise event.error or Internal("The engine gave no reason.")
        finally:
            following.cancel()
            self._close(sequence)

    async def Preload(self, request: pb.PreloadRequest, context: Any) -> pb.AdapterState:
        slots, digest, pin = self._scheduler.slots, request.digest, request.pin

        def bring() -> tuple[Future[None], bool]:
            new = pin and digest not in slots.held
            return slots.bring(digest, hold=pin), new

        def undo() -> None:
            """The pool sees by itself who goes away before the answer, and not who does before it is told."""
            brought, pinned = asked.result()
            if not brought.cancel() and pinned:
                slots.let_go(digest)

        asked = self.engine.ask(bring)
        try:
            brought, _ = await asyncio.wrap_future(asked)
            await asyncio.wrap_future(brought)
            return await self._state(digest)
        except asyncio.CancelledError:
            if not asked.cancel():
                self.engine.ask(undo)
            raise

    async def Unpin(self, request: pb.AdapterRequest, context: Any) -> pb.AdapterState:
        await self._ask(lambda: self._scheduler.slots.let_go(request.digest))
        return await self._state(request.digest)

    async def Evict(self, request: pb.AdapterRequest, context: Any) -> pb.AdapterState:
        await self._ask(lambda: self._scheduler.slots.evict(request.digest))
        await asyncio.to_thread(self._loader.drop, request.digest)
        return await self._state(request.digest)

    async def Residency(self, request: pb.ResidencyRequest, context: Any) -> pb.ResidencyReply:
        slots, loader = self._scheduler.slots, self._loader

        def reply() -> pb.ResidencyReply:
            adapters, tiers = residency.states(slots, loader), residency.tiers(slots, loader)
            return pb.ResidencyReply(adapters=adapters, slots=len(slots.slots), tiers=tiers)

        found: pb.ResidencyReply = await self._ask(reply)
        return found

    async def Stats(self, request: pb.StatsRequest, context: Any) -> pb.StatsReply:
        reply: pb.StatsReply = await self._ask(self._stats)
        return reply

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """SERVING only on the strength of a forward pass not older than FRESH seconds; an idle engine makes one."""
        if time.monotonic() - self.engine.last_forward > FRESH:
            await self._probe()
        serving = time.monotonic() - self.engine.last_forward <= FRESH and not self.engine.ended.done()
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    def stop(self) -> None:
        self.engine.stop()
        self._loader.close()

    def _sequence(self, request: pb.GenerateRequest) -> Sequence:
        asked = request.sampling
        if asked.HasField("logprobs") and asked.logprobs > MAX_TOP_LOGPROBS:
            raise InvalidRequest(f"logprobs may be {MAX_TOP_LOGPROBS} at most.", param="logprobs")
        sampling = Sampling(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            min_p=asked.min_p,
            seed=asked.seed if asked.HasField("seed") else None,
            stop=tuple(asked.stop),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            ignore_eos=asked.ignore_eos,
            logprobs=asked.logprobs if asked.HasField("logprobs") else None,
            forced=tuple(asked.forced),
            stop_token_ids=tuple(asked.stop_token_ids),
            min_tokens=asked.min_tokens,
            include_stop=asked.include_stop,
            show_special=asked.show_special,
            repetition_penalty=asked.repetition_penalty or 1.0,
            bad_words=tuple(asked.bad_words),
        )
        prompt = list(request.prompt)
        self._scheduler.admissible(prompt, sampling)
        return Sequence(
            next(self._ids),
            prompt,
            sampling,
            request.digest,
            request.share,
            request.weight or 1.0,
            request.salt,
            request.priority,
            time.monotonic() + request.start_within if request.start_within else math.inf,
            bad_words=list(self._bad_words(sampling.bad_words)),
            window=WINDOW,
        )

    def _bad_words(self, words: Iterable[str]) -> Iterator[list[int]]:
        """Each word's tokens, at the beginning of a text and, where it is other tokens there, after a space."""
        for word in words:
            bare, spaced = (self._encode(space + word.lstrip()) for space in ("", " "))
            if bare:
                yield bare
            if bare and len(spaced) == len(bare) and spaced[0] != bare[0]:
                yield spaced

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _text(self, sequence: Sequence) -> TextStream:
        asked = sequence.sampling
        return TextStream(
            self._tokenizer,
            asked.stop,
            sequence.prompt,
            include_stop=asked.include_stop,
            skip_special=not asked.show_special,
            min_tokens=asked.min_tokens,
        )

    async def _follow(
        self, calls: AsyncIterator[pb.GenerateCall], sequence: Sequence, events: asyncio.Queue[Event | Left]
    ) -> None:
        """Tell the engine how far the caller has read, and stop the sequence when the caller wants no more."""
        async for call in calls:
            self.engine.read(sequence, call.read.tokens)
        with suppress(EngineError):  # of an engine that has ended the sequence hears itself
            events.put_nowait(Left(await self._ask(lambda: self._scheduler.stop(sequence))))

    def _open(self, sequence: Sequence) -> asyncio.Queue[Event | Left]:
        events = self._streams[sequence.id] = asyncio.Queue()
        self.engine.submit(sequence)
        return events

    def _close(self, sequence: Sequence) -> None:
        del self._streams[sequence.id]
        self.engine.cancel(sequence)

    def _deliver(self, events: list[Event]) -> None:
        self._loop.call_soon_threadsafe(self._sort, events)

    def _sort(self, events: list[Event]) -> None:
        for event in events:
            if stream := self._streams.get(event.sequence.id):
                stream.put_nowait(event)

    def _waking(self, future: Future[T]) -> Future[T]:
        """The engine looks as soon as the future is done."""
        future.add_done_callback(lambda _: self.engine.wake())
        return future

    async def _ask(self, question: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.engine.ask(question))

    async def _state(self, digest: str) -> pb.AdapterState:
        found = await self._ask(lambda: residency.states(self._scheduler.slots, self._loader, [digest]))
        state: pb.AdapterState = found[0]
        return state

    async def _probe(self) -> None:
        sequence = Sequence(next(self._ids), [0], Sampling(max_tokens=1, temperature=0))
        events = self._open(sequence)
        try:
            async with asyncio.timeout(FRESH):
                while not isinstance(await events.get(), Ended):
                    pass
        except TimeoutError:
            log.warning("no forward pass within %s s", FRESH)
        finally:
            self._close(sequence)

    def _delta(self, text: TextStream, event: Token) -> pb.Delta:
        """A token that ends the answer is none of its text, unless the request says so."""
        sequence = event.sequence
        shown = sequence.sampling.include_stop or event.token not in sequence.ends
        logprobs = [] if event.logprobs is None else [self._position(event.logprobs, text, shown=shown)]
        return pb.Delta(text=text.push(event.token, shown=shown), tokens=[event.token], logprobs=logprobs)

    def _position(self, logprobs: Logprobs, text: TextStream, *, shown: bool) -> pb.PositionLogprobs:
        names = self._vocabulary.names([token for token, _ in (logprobs.chosen, *logprobs.top)], text.before)

        def told(pair: tuple[int, float], *, shown: bool = True) -> pb.TokenLogprob:
            token, logprob = pair
            return pb.TokenLogprob(token=token, text=names[token], raw=text.raw(token, shown=shown), logprob=logprob)

        return pb.PositionLogprobs(chosen=told(logprobs.chosen, shown=shown), top=map(told, logprobs.top))

    def _stats(self) -> pb.StatsReply:
        engine, scheduler = self.engine, self._scheduler
        blocks, slots = scheduler.blocks, scheduler.slots
        occupied = list(slots.occupied())
        return pb.StatsReply(
            gauges={
                "running": len(scheduler.running),
                "waiting": len(scheduler.queue),
                "held": len(scheduler.held),
                "blocks": blocks.total,
                "blocks_free": blocks.available,
                "blocks_cached": blocks.cached,
                "slots": len(slots.slots),
                "slots_occupied": len(occupied),
                "adapter_bytes": sum(slot.bytes for slot in occupied),
                "context": scheduler.context,
            },
            counters={
                "steps_total": engine.steps,
                "step_seconds_total": engine.step_seconds,
                "failed_steps_total": engine.failed_steps,
                "replayed_steps_total": self._runner.replayed,
                "prompt_tokens_total": engine.prompt_tokens,
                "generated_tokens_total": engine.generated_tokens,
                "preemptions_total": scheduler.preemptions,
                "yields_total": scheduler.yields,
                "adapter_loads_total": slots.tally.loads,
                "adapter_evictions_total": slots.tally.evictions,
                "adapter_load_failures_total": self._loader.failures,
                "adapter_load_retries_total": self._loader.retries,
            },
            steps_by_adapters=dict(engine.steps_by_adapters),
            steps_by_rows=dict(engine.steps_by_rows),
            tiers=residency.tiers(slots, self._loader),
        )


async def _asked(calls: AsyncIterator[pb.GenerateCall]) -> pb.GenerateRequest:
    first = await anext(calls, None)
    if first is None or not first.HasField("request"):
        raise InvalidRequest("The first message of a call must be its request.")
    return first.request


def _started(sequence: Sequence) -> pb.Started:
    return pb.Started(prompt_tokens=len(sequence.prompt), cached_tokens=sequence.cached, cold=sequence.cold)


def _finished(sequence: Sequence, reason: str, tokens: int) -> pb.GenerateEvent:
    return pb.GenerateEvent(
        finished=pb.Finished(
            reason=reason,
            prompt_tokens=len(sequence.prompt),
            completion_tokens=tokens,
            cached_tokens=sequence.cached,
        )
    )
