"""Where a URL on a tenant's word may lead, and where not."""

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.webhooks.conftest import Receiver
from webhooks import network
from webhooks.network import Refused, check_address, check_url, post

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
Names = Callable[..., list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Lets a name mean these addresses, one more at each look-up; returns what was looked up."""
    real = socket.getaddrinfo

    def install(name: str, *answers: list[str]) -> list[str]:
        left, asked = list(answers), []

        def resolve(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host != name:
                return real(host, port, *args, **kwargs)
            asked.append(name)
            found = left.pop(0) if len(left) > 1 else left[0]
            return [row for address in found for row in real(address, port, *args, **kwargs)]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        return asked

    return install


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a00:1", "64:ff9b::7f00:1",
        "2001:0:0:0:0:0:80ff:fffe", "2001:db8::1", "fec0::1", "feff::1", "fd12::1", "febf::1", "fe80::1%eth0",
        "64:ff9b::c0a8:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808", "64:ff9b:1::a00:1", "2002:c0a8:1::1",
        "2002:808:808::1", "2001:0:808:808::f5ff:fffe", "::10.0.0.1", "::8.8.8.8", "::ffff:0:8.8.8.8", "100::1",
        "2001:2::1", "2001:10::1", "2001:20::1", "3fff::1", "5f00::1", "4000::1", "ff0e::1", "192.88.99.1",
        "192.0.0.1", "203.0.113.1", "::ffff:100.64.0.1", "::ffff:224.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(Refused):
        check_address(ipaddress.ip_address(address), (), secure=True)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "2a00::1", "2001:4860::8888"]
)
def test_public_addresses_are_not(address: str) -> None:
    check_address(ipaddress.ip_address(address), (), secure=True)


def test_an_allowed_network_takes_what_stands_for_its_addresses_and_no_other() -> None:
    for address in ("127.0.0.1", "::ffff:127.0.0.1"):
        check_address(ipaddress.ip_address(address), LOOPBACK, secure=False)
    for address in ("10.0.0.1", "::1"):
        with pytest.raises(Refused):
            check_address(ipaddress.ip_address(address), LOOPBACK, secure=True)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "gopher://a/", "https:///x", "https://a b/", "https://a\\@b/", "https://a#f", "//a/", "",
        "https://[::1/", "https://a:b/", "https://b\u00fccher.example/", "https://a/\n", "https://@a/", "https://a:0/",
    ],
)  # fmt: skip
def test_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(Refused):
        check_url(url, LOOPBACK)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost", "localhost."])
def test_other_spellings_of_loopback_are_refused_when_they_resolve(host: str) -> None:
    outcome = post(f"https://{host}:9/", b"{}", {}, ())
    assert (outcome.status, outcome.error) == (0, "The address is not a public one.") or "gaierror" in outcome.error


def test_a_name_is_resolved_once_and_what_was_checked_is_connected_to(receiver: Receiver, names: Names) -> None:
    asked = names("rebinding.test", ["127.0.0.1"], ["127.0.0.2"])
    port = receiver.url.split(":")[2].split("/")[0]
    outcome = post(f"http://rebinding.test:{port}/hook", b"{}", {}, LOOPBACK)
    assert (outcome.status, asked) == (200, ["rebinding.test"])
    assert receiver.got[0][0]["host"] == f"rebinding.test:{port}"


def test_of_a_names_addresses_only_a_permitted_one_is_used(receiver: Receiver, names: Names) -> None:
    names("mixed.test", ["10.0.0.1", "127.0.0.1"])
    port = receiver.url.split(":")[2].split("/")[0]
    assert post(f"http://mixed.test:{port}/", b"{}", {}, LOOPBACK).status == 200
    names("private.test", ["10.0.0.1", "192.168.0.1"])
    assert post("https://private.test/", b"{}", {}, LOOPBACK).error == "The address is not a public one."


def test_https_goes_by_the_name_though_the_address_is_pinned(tmp_path: Path, names: Names) -> None:
    names("hooks.test", ["127.0.0.1"])
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "pem"
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    pem.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    seen: list[Any] = []
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        outcome = post(f"https://hooks.test:{listener.getsockname()[1]}/", b"{}", {}, LOOPBACK)
        thread.join(5)
    assert seen == ["hooks.test"]
    assert (outcome.status, "CERTIFICATE_VERIFY_FAILED" in outcome.error) == (0, True)


def test_a_receiver_that_drips_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "DEADLINE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not over.wait(0.1):
                    try:
                        connection.sendall(b"x: y\r\n")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        begun = time.monotonic()
        outcome = post(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"{}", {}, LOOPBACK)
        took = time.monotonic() - begun
        over.set()
        thread.join(60)
    assert (outcome.status, outcome.error) == (0, "No answer within 0 s.")
    assert took < 60
