"""The engine's process: its options, what it listens on, and how it ends; never what is said there.

LORAYARD_ENGINE_SECRET=… python -m inference.server --model demo/base --listen unix:/run/engine.sock --store file:///…
"""

import argparse
import asyncio
import ctypes
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from transformers import AutoTokenizer

from adapters.errors import BaseModelMissing, BaseModelUnsupported
from inference import engine_pb2_grpc, memory, wire
from inference.engine.engine import Engine
from inference.guard import Guard
from inference.models.attention import UnservedModel
from inference.models.load import Model, choose_device, choose_dtype, load
from inference.service import Service
from inference.vocabulary import end_of_turn

log = logging.getLogger("inference.server")

M_ARENA_MAX, HEAPS = -8, 2  # malloc.h's name for it


class EngineBroken(Exception):
    """The engine's thread ended by itself; only a new process can serve again."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m inference.server", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder, or a hub id")
    parser.add_argument("--listen", required=True, help="unix:/path or host:port; loopback unless you mean otherwise")
    parser.add_argument("--store", required=True, help="URL of the artifact store, e.g. file:///var/lib/lorayard/store")
    parser.add_argument("--cache", required=True, type=Path, help="folder for local copies of adapters")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--slots", type=int, default=16, help="adapters on the device at once")
    parser.add_argument("--kv-tokens", type=int, default=0, help="size of the KV cache; 0: what memory allows")
    parser.add_argument("--arena", type=memory.size, default=0, help="device memory for adapters; 0: by the slots")
    parser.add_argument("--host-memory", type=memory.size, default=0, help="for adapters off the device; 0: a share")
    parser.add_argument("--disk-cache", type=memory.size, default=0, help="for copies of adapters; 0: a share")
    parser.add_argument("--load-timeout", type=float, default=60.0, help="seconds that an adapter's load may take")
    parser.add_argument("--max-rows", type=int, default=64, help="sequences in a step")
    parser.add_argument("--max-batch-tokens", type=int, default=512, help="tokens in a step")
    parser.add_argument("--eager", action="store_true", help="on CUDA: never replay decode steps from graphs")
    parser.add_argument("--check", action="store_true", help="assert the engine's laws after every step")
    arguments = parser.parse_args(argv)
    if arguments.max_batch_tokens < arguments.max_rows:
        parser.error("--max-batch-tokens must be at least --max-rows, or decoding sequences would starve")
    return arguments


async def serve(arguments: argparse.Namespace, secret: str) -> None:
    """Load the model, listen, and run until SIGTERM or SIGINT; raises EngineBroken if the engine ends before."""
    device = choose_device(arguments.device)
    model = await asyncio.to_thread(
        load, arguments.model, device, choose_dtype(arguments.dtype, device), arguments.slots
    )
    tokenizer = tokenizer_of(arguments.model)
    service = Service(ending(model, tokenizer), tokenizer.backend_tokenizer, arguments)
    server = grpc.aio.server(interceptors=[Guard(secret)], options=wire.SERVER_OPTIONS)
    engine_pb2_grpc.add_EngineServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    service.engine.start()
    _clear_socket(arguments.listen)
    server.add_insecure_port(arguments.listen)
    await server.start()
    log.info("serving %s on %s, %s, %s", arguments.model, arguments.listen, device, model.dtype)
    broken = await _terminated(service.engine)
    await server.stop(grace=2.0)
    await asyncio.to_thread(service.stop)
    if broken:
        raise EngineBroken


def tokenizer_of(source: str) -> Any:
    """Raises BaseModelUnsupported for one that only Python can run: it can't tell one token's bytes from the next's."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        kind = type(tokenizer).__name__
        raise BaseModelUnsupported(f"{source}: its tokenizer ({kind}) has no tokenizer.json, by which text is served.")
    return tokenizer


def ending(model: Model, tokenizer: Any) -> Model:
    """The model, which ends an answer where its tokenizer and its chat template do, too."""
    own = {tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
    return replace(model, stops=model.stops | own)


def _clear_socket(listen: str) -> None:
    """A killed engine leaves its socket file behind; the one that follows takes its place."""
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).unlink(missing_ok=True)


async def _terminated(engine: Engine) -> bool:
    """Wait for a signal, or until the engine has ended by itself: True if it has."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine.ended.add_done_callback(lambda _: loop.call_soon_threadsafe(stop.set))
    await stop.wait()
    return engine.ended.done()


def _few_heaps() -> None:
    """glibc makes a heap for every thread, up to eight a core, and keeps what it once held; loads come in threads."""
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)


def main() -> None:
    _few_heaps()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    arguments = parse(sys.argv[1:])
    secret = os.environ.get("LORAYARD_ENGINE_SECRET", "")
    if not secret:
        sys.exit("LORAYARD_ENGINE_SECRET is not set; the engine and its callers share it.")
    try:
        asyncio.run(serve(arguments, secret))
    except EngineBroken:
        sys.exit("The engine broke. What is above in the log says how; whoever started this process starts it again.")
    except (BaseModelMissing, BaseModelUnsupported, UnservedModel, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
