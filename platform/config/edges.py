"""Knows what is put right about a request before anybody looks at it, and about its answer; nothing of what they say.

Who the client is behind a proxy that is believed, slashes at an address' end, the host that probes name, and that no
cache keeps what an API answers.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

Scope = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]
Network = IPv4Network | IPv6Network

PROBES = ("/healthz", "/readyz", "/health", "/metrics")
APIS = ("/v1/", "/api/v1/")


def seen_through(scope: Scope, proxies: Iterable[Network]) -> Scope:
    """The request as the nearest client outside `proxies` sent it. From others these headers are only text."""
    client = scope.get("client")
    if client is None or not _within(client[0], proxies):
        return scope
    headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
    hops = [hop.strip() for name, value in headers if name == b"x-forwarded-for" for hop in value.split(",")]
    address = client[0]
    while hops and _within(address, proxies) and (nearer := _address(hops.pop())):
        address = nearer
    secure = (b"x-forwarded-proto", "https") in headers
    scheme = {"http": "https", "websocket": "wss"}[scope["type"]] if secure else scope["scheme"]
    return {**scope, "client": (address, client[1] if address == client[0] else 0), "scheme": scheme}


def tidied(scope: Scope) -> Scope:
    """Without slashes at the end of an API's address; and a probe, which may call a machine by any name, by our own."""
    path = scope["path"]
    if path in PROBES:
        named = [(name, value) for name, value in scope["headers"] if name != b"host"]
        return {**scope, "headers": [*named, (b"host", b"localhost")]}
    if path.endswith("/") and path.startswith(APIS):
        return {**scope, "path": path.rstrip("/"), "raw_path": scope.get("raw_path", b"").rstrip(b"/")}
    return scope


def uncached(scope: Scope, send: Send) -> Send:
    """A `send` by which no cache keeps an API's answer, unless the answer says what caches may do."""
    return (
        partial(_send_uncached, send) if scope["path"].startswith("/v1/") or scope["path"].startswith("/api/") else send
    )


async def _send_uncached(send: Send, message: Any) -> None:
    if message["type"] == "http.response.start":
        headers = list(message.get("headers", []))
        if not any(name.lower() == b"cache-control" for name, _ in headers):
            message = {**message, "headers": [*headers, (b"cache-control", b"no-store")]}
    await send(message)


def _within(host: str, networks: Iterable[Network]) -> bool:
    address = _address(host)
    return address is not None and any(ip_address(address) in network for network in networks)


def _address(text: str) -> str | None:
    """An address as proxies write it, with or without a port; as IPv4 where it is that in IPv6's clothes."""
    host = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text
    host = host.partition(":")[0] if host.count(":") == 1 else host
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)
