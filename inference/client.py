"""Knows the engine's wire and nothing behind it: digests, token ids and fair shares in, text out; imports no torch.

One client per event loop; it may be shared by any number of tasks of that loop.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference import engine_pb2 as pb
from inference.engine_pb2_grpc import EngineStub
from inference.errors import (
    METADATA_KEY,
    AdapterFaulty,
    AdapterMissing,
    AdapterUnavailable,
    EngineBusy,
    EngineDown,
    EngineError,
    Internal,
    InvalidRequest,
    NonFinite,
    NotRead,
    PinsFull,
    PromptTooLong,
    StepFailed,
    from_status,
)
from inference.wire import CLIENT_OPTIONS, authorization

log = logging.getLogger(__name__)

__all__ = [
    "AdapterFaulty",
    "AdapterMissing",
    "AdapterState",
    "AdapterUnavailable",
    "Answer",
    "Delta",
    "EngineBusy",
    "EngineClient",
    "EngineDown",
    "EngineError",
    "Event",
    "Finished",
    "Generation",
    "Internal",
    "InvalidRequest",
    "NonFinite",
    "NotRead",
    "PinsFull",
    "PositionLogprobs",
    "PromptTooLong",
    "Residency",
    "Sampling",
    "Started",
    "Stats",
    "StepFailed",
    "Tier",
    "TokenLogprob",
]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. temperature 0 is greedy; top_p 1, top_k 0 and min_p 0 are off.

    logprobs: None for none, else of the chosen token and of its `logprobs` best rivals. forced: token ids that the
    answer begins with whatever the model would say, so that logprobs tell how likely they are. stop_token_ids: end the
    answer beside the model's own. min_tokens: before so many nothing but max_tokens ends it. include_stop: what stopped
    it is part of its text. show_special: special tokens are text like others. bad_words: never said.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: int | None = None
    forced: Sequence[int] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    include_stop: bool = False
    show_special: bool = False
    repetition_penalty: float = 1.0
    bad_words: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One request. prompt: token ids. digest: of the adapter's version, "" is the base model.

    share: whose fair share pays. salt: the prefix cache's domain; sequences of different salts never share a block.
    priority: within the share, smaller goes first. start_within: seconds; not begun by then, it fails as EngineBusy.
    """

    request_id: str
    prompt: Sequence[int]
    sampling: Sampling
    digest: str = ""
    share: str = ""
    weight: float = 1.0
    salt: str = ""
    priority: int = 0
    start_within: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: int
    text: str
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """cold: it waited for its adapter to come to the device."""

    prompt_tokens: int
    cached_tokens: int
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """Text and the tokens it came from; the text is empty while a character or a stop string is incomplete."""

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """reason: "stop" or "length", or "left" of one that was closed, which no reader sees."""

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


Event = Started | Delta | Finished


@dataclass(frozen=True, slots=True)
class AdapterState:
    """What an engine holds of an adapter.

    state    on the device: "resident", "loading", "draining" or "absent"
    running  sequences on it now
    bytes    on the device; host_bytes and disk_bytes: in those tiers, each 0 where it is not
    pinned   makes no room for others, until it is unpinned or evicted
    tier     the nearest place that has it whole: "device", "host", "disk" or "store"
    """

    digest: str
    state: str
    running: int
    bytes: int
    pinned: bool = False
    tier: str = "store"
    host_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Tier:
    """name: "device", "host" or "disk". bytes: held now, of at most `limit`, for so many `adapters`.

    Since the engine's start: hits and misses of adapters wanted here, loads that brought one in and the seconds that
    they took together, evictions that made room.
    """

    name: str
    bytes: int
    limit: int
    adapters: int
    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Residency:
    """Every adapter that the engine holds anything of, and how full its tiers are."""

    adapters: tuple[AdapterState, ...]
    slots: int
    tiers: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """steps_by_adapters: distinct adapters in a step's batch -> steps. steps_by_rows: sequences in it -> steps."""

    gauges: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    steps_by_adapters: Mapping[int, int] = field(default_factory=dict)
    steps_by_rows: Mapping[int, int] = field(default_factory=dict)
    tiers: tuple[Tier, ...] = ()


ACKNOWLEDGE = 16  # tokens read, of which the engine is told at once
LAST_WORD = 2.0  # seconds
RECONNECT = 0.5  # seconds, of which the wire's longest pause between two attempts is half
DOWN = grpc.ChannelConnectivity.TRANSIENT_FAILURE


class EngineClient:
    """An engine at `url` ("unix:/path" or "host:port"). Every method raises EngineError and nothing else of its own.

    Connects when first used and again, within a quarter of a second, after the engine was away.
    """

    def __init__(self, url: str, secret: str) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=CLIENT_OPTIONS)
        self._engine: Any = EngineStub(self._channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._metadata = (authorization(secret),)

    def generate(self, generation: Generation) -> "Answer":
        """Its events, from the first `anext` on."""
        return Answer(self._begin, _request(generation))

    async def preload(self, digest: str, *, pin: bool = False, timeout: float = 60.0) -> AdapterState:  # noqa: ASYNC109
        """Answers when the adapter is on the device. Pinned, it stays until it is unpinned or evicted.

        A restarted engine has forgotten its pins. Raises PinsFull if too many others are pinned.
        """
        return _state(await self._call(self._engine.Preload, pb.PreloadRequest(digest=digest, pin=pin), timeout))

    async def unpin(self, digest: str, *, timeout: float = 5.0) -> AdapterState:  # noqa: ASYNC109
        """Lets a pinned adapter make room for others again; nothing happens to one that is not pinned."""
        return _state(await self._call(self._engine.Unpin, pb.AdapterRequest(digest=digest), timeout))

    async def evict(self, digest: str, *, timeout: float = 5.0) -> AdapterState:  # noqa: ASYNC109
        """Unpins the adapter and frees all that the engine holds of it: now if nothing runs on it, after its last
        sequence otherwise ("draining")."""
        return _state(await self._call(self._engine.Evict, pb.AdapterRequest(digest=digest), timeout))

    async def residency(self, *, timeout: float = 5.0) -> Residency:  # noqa: ASYNC109
        reply = await self._call(self._engine.Residency, pb.ResidencyRequest(), timeout)
        return Residency(tuple(map(_state, reply.adapters)), reply.slots, tuple(map(_tier, reply.tiers)))

    async def stats(self, *, timeout: float = 5.0) -> Stats:  # noqa: ASYNC109
        reply = await self._call(self._engine.Stats, pb.StatsRequest(), timeout)
        return Stats(
            dict(reply.gauges),
            dict(reply.counters),
            dict(reply.steps_by_adapters),
            dict(reply.steps_by_rows),
            tuple(map(_tier, reply.tiers)),
        )

    async def healthy(self, *, timeout: float = 2.0) -> bool:  # noqa: ASYNC109
        """Whether the engine answers, and by its own account serves. Never raises EngineError."""
        try:
            reply = await self._call(self._health.Check, health_pb2.HealthCheckRequest(), timeout)
        except EngineError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Cancels every call under way."""
        await self._channel.close(None)

    async def _begin(self) -> Any:
        await self._reconnected()
        return self._engine.Generate(metadata=self._metadata)

    async def _reconnected(self) -> None:
        """Gives a broken connection RECONNECT seconds to come back, so that an engine just restarted is not missed."""
        deadline = time.monotonic() + RECONNECT
        while self._channel.get_state(try_to_connect=True) is DOWN and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def _call(self, method: Any, request: Any, timeout: float) -> Any:  # noqa: ASYNC109
        try:
            return await method(request, timeout=timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error


class Answer:
    """One request's events: Started, then Deltas, then Finished. Raises EngineError. Whoever starts one closes it.

    The engine stays a window of tokens ahead of the reader. Closing stops the sequence. made: the tokens that the
    engine has made for it, read or not; once it is closed that is all of them, unless the engine is gone.
    """

    def __init__(self, begin: Callable[[], Awaitable[Any]], request: pb.GenerateRequest) -> None:
        self.made = 0
        self._begin = begin
        self._request = request
        self._call: Any = None
        self._receiving: asyncio.Task[None] | None = None
        self._come: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._sending = asyncio.Lock()
        self._unread = 0
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; asking for it says that the ones before were read."""
        if self._over:
            raise StopAsyncIteration
        if self._receiving is None:
            self._call = await self._begin()
            self._receiving = asyncio.create_task(self._receive())
        if self._unread >= ACKNOWLEDGE:
            read, self._unread = self._unread, 0
            await asyncio.shield(self._send(pb.GenerateCall(read=pb.Read(tokens=read))))
        event = await self._come.get()
        self._over = not isinstance(event, Started | Delta)
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, Delta):
            self._unread += len(event.tokens)
        return event

    async def aclose(self) -> None:
        """Within a step, or LAST_WORD seconds where the engine says nothing."""
        self._over = True
        if self._receiving is None:
            return
        try:
            if not self._receiving.done():
                async with asyncio.timeout(LAST_WORD):
                    await self._half_close()
                    await asyncio.wait([self._receiving])
        except TimeoutError:
            pass
        finally:
            self._call.cancel()

    async def _receive(self) -> None:
        """Takes what comes as it comes: a read that is cancelled would cancel the call."""
        last: Event | BaseException | None = None
        try:
            await self._send(pb.GenerateCall(request=self._request))
            async for message in self._call:
                last = _event(message)
                self._count(last)
                self._come.put_nowait(last)
        except grpc.aio.AioRpcError as error:
            self._come.put_nowait(_translated(error))
        except asyncio.CancelledError as error:  # the client was closed
            self._come.put_nowait(error)
        except Exception:
            log.exception("an answer could not be taken in")
            self._call.cancel()
            self._come.put_nowait(Internal("What the engine sent could not be read."))
        else:
            if not isinstance(last, Finished):
                self._come.put_nowait(Internal("The engine ended the stream before its last event."))

    def _count(self, event: Event) -> None:
        match event:
            case Delta():
                self.made += len(event.tokens)
            case Finished():
                self.made = event.completion_tokens

    async def _send(self, message: pb.GenerateCall) -> None:
        """A call that is over needs nothing any more; how it ended `_receive` hears."""
        async with self._sending:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.write(message)

    async def _half_close(self) -> None:
        async with self._sending:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await self._call.done_writing()


def _request(generation: Generation) -> pb.GenerateRequest:
    sampling = generation.sampling
    return pb.GenerateRequest(
        request_id=generation.request_id,
        prompt=generation.prompt,
        digest=generation.digest,
        sampling=pb.Sampling(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            stop=sampling.stop,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            forced=sampling.forced,
            stop_token_ids=sampling.stop_token_ids,
            min_tokens=sampling.min_tokens,
            include_stop=sampling.include_stop,
            show_special=sampling.show_special,
            repetition_penalty=sampling.repetition_penalty,
            bad_words=sampling.bad_words,
        ),
        share=generation.share,
        weight=generation.weight,
        salt=generation.salt,
        priority=generation.priority,
        start_within=generation.start_within,
    )


def _event(message: pb.GenerateEvent) -> Event:
    match message.WhichOneof("event"):
        case "started":
            started = message.started
            return Started(started.prompt_tokens, started.cached_tokens, started.cold)
        case "delta":
            delta = message.delta
            return Delta(delta.text, tuple(delta.tokens), tuple(_position(position) for position in delta.logprobs))
        case "finished":
            finished = message.finished
            return Finished(finished.reason, finished.prompt_tokens, finished.completion_tokens, finished.cached_tokens)
    raise Internal("The engine sent an event that this client does not know.")


def _position(message: pb.PositionLogprobs) -> PositionLogprobs:
    return PositionLogprobs(_token(message.chosen), tuple(_token(token) for token in message.top))


def _token(message: pb.TokenLogprob) -> TokenLogprob:
    return TokenLogprob(message.token, message.text, message.raw, message.logprob)


def _state(message: pb.AdapterState) -> AdapterState:
    return AdapterState(
        message.digest,
        message.state,
        message.running,
        message.bytes,
        message.pinned,
        message.tier,
        message.host_bytes,
        message.disk_bytes,
    )


def _tier(message: pb.Tier) -> Tier:
    return Tier(
        message.name,
        message.bytes,
        message.limit,
        message.adapters,
        message.hits,
        message.misses,
        message.loads,
        message.evictions,
        message.seconds,
    )


def _translated(error: grpc.aio.AioRpcError) -> EngineError:
    trailing: Any = error.trailing_metadata() or ()
    return from_status(error.code(), dict(trailing).get(METADATA_KEY), error.details() or "")
