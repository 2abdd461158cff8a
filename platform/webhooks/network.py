"""Sends one request to a URL that somebody else chose, without reaching anything that is ours.

The name is resolved once; the address that was checked is the address that is connected to, whatever the name says a
moment later. Redirects are answers like any other. Knows no tenants and no signatures.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEADLINE = 10.0  # seconds, for everything from the look-up of the name to the answer's headers
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# The one part of IPv6 that is handed out for the whole Internet (IANA's IPv6 Global Unicast Address Space), and what
# of it has another meaning: protocols' own (Teredo among them), 6to4, documentation.
UNICAST = ipaddress.IPv6Network("2000::/3")
SPECIAL = [ipaddress.ip_network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
SPECIAL += [ipaddress.ip_network("192.88.99.0/24")]  # 6to4's relays


class Refused(Exception):
    """The URL leads where nobody's word may lead us. Its text says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of it: an HTTP status, or 0 and why there is none."""

    status: int
    error: str
    milliseconds: int

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300


def check_url(url: str, allowed: Sequence[Network]) -> SplitResult:
    """The parts of a URL that may be asked for. Raises Refused.

    Plain http is only for networks that the operator allows. A literal address is checked here, a name when it is used.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Refused("This is no URL.") from None
    if parts.scheme not in ("https", "http") or not host or port == 0 or not url.isascii() or not url.isprintable():
        raise Refused("Give a URL like https://host/path.")
    if parts.username is not None or parts.password is not None or parts.fragment or " " in url or "\\" in url:
        raise Refused("A URL with a user, a password, a fragment, spaces or backslashes is not taken.")
    if parts.scheme == "http" and not allowed:
        raise Refused("Only https is taken.")
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return parts
    check_address(literal, allowed, secure=parts.scheme == "https")
    return parts


def check_address(address: Address, allowed: Sequence[Network], *, secure: bool) -> None:
    """Raises Refused unless the address is public, or in a network that the operator allows."""
    real = _unwrapped(address)
    if any(real.version == network.version and real in network for network in allowed):
        return
    if not _is_public(real):
        raise Refused("The address is not a public one.")
    if not secure:
        raise Refused("Only https is taken.")


def post(url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[Network]) -> Outcome:
    """POST the body; the outcome never raises. The answer's body is not read."""
    begun = time.monotonic()
    status, error = 0, ""
    try:
        status = asyncio.run(_post(url, body, headers, allowed))
    except Refused as refusal:
        error = str(refusal)
    except TimeoutError:
        error = f"No answer within {DEADLINE:.0f} s."
    except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as failure:
        error = f"{type(failure).__name__}: {failure}"[:300]
    return Outcome(status, error, int((time.monotonic() - begun) * 1000))


async def _post(url: str, body: bytes, headers: Mapping[str, str], allowed: Sequence[Network]) -> int:
    parts = check_url(url, allowed)
    host = parts.hostname or ""
    async with asyncio.timeout(DEADLINE):
        address = await _resolve(host, parts, allowed)
        pinned = httpx.URL(url).copy_with(host=str(address))
        told = {**headers, "host": parts.netloc}
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=DEADLINE) as client,
            client.stream("POST", pinned, content=body, headers=told, extensions={"sni_hostname": host}) as answer,
        ):
            return answer.status_code


async def _resolve(host: str, parts: SplitResult, allowed: Sequence[Network]) -> Address:
    """The first address of the name that may be connected to. Raises Refused when there is none."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    refusal = Refused("The name has no address.")
    for *_, place in found:
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        try:
            check_address(address, allowed, secure=parts.scheme == "https")
        except Refused as reason:
            refusal = reason
        else:
            return address
    raise refusal


def _is_public(address: Address) -> bool:
    """Whether it is somebody's in the Internet at large: for IPv6 what is known to be so, not what isn't known else."""
    if any(address.version == network.version and address in network for network in SPECIAL):
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where a connection would go to it: mapped, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address
