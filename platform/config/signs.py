"""How the supervisor sees that a process lives, from outside and without its help; knows ways to look, no process.

A sign says whether it was seen now: True, False, or None where nothing can be said. None of them waits for work to be
done, so that a process that is busy for long is never taken for one that hangs.
"""

import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

import psutil

WAIT = 10.0  # seconds for an answer
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # RFC 9113: preface, empty SETTINGS


@dataclass(frozen=True)
class Sign:
    """A sign of life, looked for by pid. Once seen, it must not be missing for longer than `bound` seconds."""

    seen: Callable[[int], bool | None]
    bound: float


def runs(pid: int) -> bool | None:
    """It is not stopped (SIGSTOP, a debugger, a frozen group)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_STOPPED)
    except psutil.Error:
        return None  # it is gone, which is noticed otherwise


def speaks_http2(address: str) -> Callable[[int], bool]:
    """Whoever listens at "unix:/path" or "host:port" says anything when it is greeted, as every gRPC server does."""

    def seen(_pid: int) -> bool:
        try:
            with _connected(address) as connection:
                connection.sendall(HELLO)
                return connection.recv(1) != b""
        except OSError:
            return False

    return seen


def answers_http(url: str) -> Callable[[int], bool]:
    """Whoever serves this URL answers, whatever it says."""

    def seen(_pid: int) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=WAIT):  # noqa: S310 - our own address
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    return seen


def _connected(address: str) -> socket.socket:
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(WAIT)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), WAIT)
