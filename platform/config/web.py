"""Serves HTTP and WebSockets: `python -m config.web`. Knows uvicorn; knows nothing of what is served.

Every web process is started so, by `up` as in a container, so that all hold the same bounds. Any number may run.
"""

import argparse

import uvicorn

from config import env
from config.connections import Connection, Socket
from config.processes import raise_file_limit

MAX_FRAME = 4 * 2**20  # bytes that a WebSocket's message may have


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m config.web", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=env.load().port)
    parser.add_argument("--grace", type=int, default=5, help="seconds that open streams have when it is told to stop")
    told = parser.parse_args()
    raise_file_limit()
    uvicorn.run(
        "config.asgi:application",
        host=told.host,
        port=told.port,
        http=Connection,
        ws=Socket,
        ws_max_size=MAX_FRAME,
        timeout_graceful_shutdown=told.grace,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # LORAYARD_TRUSTED_PROXIES says whom to believe
    )


if __name__ == "__main__":
    main()
