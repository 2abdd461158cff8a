"""Who signed a version: the tenant's own keys alone, over the digest, and asked for where the tenant wants it."""

import base64
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from django.core.files import File
from django.db import DatabaseError, transaction
from rest_framework.test import APIClient

from adapters import signatures
from adapters.manifest import Manifest
from audit.models import Event
from audit.services import SYSTEM
from audit.verification import verify
from registry.intake import SigningKey
from registry.models import BaseModel, State, Version
from registry.services import add_signing_key, require_signatures, upload_version, validate_version
from registry.services.adapters import ensure_adapter
from tenants.models import Tenant
from tests.processes import ROOT
from tests.registry.test_upload import CONFIG, WEIGHTS

Commits = Callable[..., AbstractContextManager[Any]]
Clients = Callable[..., APIClient]
KEYS, POLICY = "/api/v1/signing-keys", "/api/v1/signing-policy"


def public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def digest(folder: Path) -> str:
    (folder / "README.md").unlink(missing_ok=True)
    return Manifest.of(folder).digest


@pytest.fixture
def signed(base: BaseModel, folder: Path, django_capture_on_commit_callbacks: Commits) -> Callable[..., Version]:
    """Uploads the folder with a signature and validates it."""

    def run(tenant: Tenant, signature: str) -> Version:
        files = [File((folder / name).open("rb"), name=name) for name in (CONFIG, WEIGHTS)]
        adapter = ensure_adapter(tenant, "support", actor=SYSTEM)
        with django_capture_on_commit_callbacks(execute=True):
            version = upload_version(adapter, files, signature=signature, actor=SYSTEM)
            validate_version(version.pk)
        return Version.objects.get(pk=version.pk)

    return run


def rules(version: Version) -> list[str]:
    return [finding["rule"] for finding in version.findings]


def test_a_tenant_registers_lists_and_revokes_its_keys(
    acme: Tenant, globex: Tenant, client_of: Clients, key: Ed25519PrivateKey
) -> None:
    client, stranger = client_of(acme), client_of(globex)
    made = client.post(KEYS, {"name": "ci", "public_key": pem(key)}, format="json")
    assert (made.status_code, made.json()["public_key"]) == (201, public(key))
    assert stranger.get(KEYS).json()["results"] == []
    path = f"{KEYS}/{made.json()['id']}/revoke"
    assert stranger.post(path).status_code == 404
    again = client.post(KEYS, {"name": "twice", "public_key": public(key)}, format="json")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "key_known")
    for _ in range(2):
        assert client.post(path).json()["revoked_at"]
    assert client.post(KEYS, {"name": "back", "public_key": public(key)}, format="json").status_code == 409
    events = Event.objects.for_tenant(acme).filter(action__startswith="signing-key").order_by("number")
    assert [(event.action, event.data.get("public_key")) for event in events] == [
        ("signing-key:added", public(key)),
        ("signing-key:revoked", None),
    ]
    assert verify() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "AAAA",
        base64.b64encode(bytes(33)).decode(),
        "-----BEGIN PUBLIC KEY-----\nx",
        pytest.param(pem(generate_private_key(SECP256R1())), id="of another kind"),
    ],
)
def test_what_is_no_ed25519_key_is_a_400(acme: Tenant, client_of: Clients, text: str) -> None:
    answer = client_of(acme).post(KEYS, {"name": "ci", "public_key": text}, format="json")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "public_key")
    assert not SigningKey.objects.exists()


def test_a_signed_version_says_by_which_key(
    acme: Tenant, key: Ed25519PrivateKey, digest: str, signed: Callable[..., Version]
) -> None:
    add_signing_key(acme, "other", public(Ed25519PrivateKey.generate()), actor=SYSTEM)
    row = add_signing_key(acme, "ci", public(key), actor=SYSTEM)
    version = signed(acme, signatures.sign(key, digest))
    assert (version.state, version.signed_by, version.digest) == (State.READY, row, digest)
    ready = Event.objects.for_tenant(acme).get(action="adapter:version:ready")
    assert ready.data["signed_by"] == str(row)
    for change in ({"signature": ""}, {"signed_by": None}):
        with pytest.raises(DatabaseError), transaction.atomic():
            Version.objects.filter(pk=version.pk).update(**change)


def test_a_signature_that_is_nobody_s_of_another_digest_or_a_stranger_s_is_rejected(
    acme: Tenant, globex: Tenant, key: Ed25519PrivateKey, digest: str, signed: Callable[..., Version]
) -> None:
    strange = Ed25519PrivateKey.generate()
    add_signing_key(acme, "ci", public(key), actor=SYSTEM)
    add_signing_key(globex, "ci", public(strange), actor=SYSTEM)
    for signature in (
        signatures.sign(strange, digest),
        signatures.sign(key, "sha256:" + "0" * 64),
        base64.b64encode(key.sign(digest.encode())).decode(),  # signed for some other purpose
        base64.b64encode(bytes(64)).decode(),
    ):
        version = signed(acme, signature)
        assert (version.state, rules(version)) == (State.REJECTED, ["signature-invalid"])
        assert version.findings[0]["expected"] == f"a signature of {digest}"


def test_a_tenant_that_asks_for_signatures_takes_nothing_without(
    acme: Tenant,
    globex: Tenant,
    client_of: Clients,
    key: Ed25519PrivateKey,
    digest: str,
    folder: Path,
    post: Callable[..., Any],
    signed: Callable[..., Version],
) -> None:
    client = client_of(acme)
    early = client.put(POLICY, {"required": True}, format="json")
    assert (early.status_code, early.json()["error"]["code"]) == (409, "no_signing_key")
    row = client.post(KEYS, {"name": "ci", "public_key": public(key)}, format="json").json()
    assert client.put(POLICY, {"required": True}, format="json").json() == {"required": True}
    assert client_of(globex).get(POLICY).json() == {"required": False}
    answer = post(client, "support", folder / CONFIG, folder / WEIGHTS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "signature_required")
    acme.refresh_from_db()
    assert signed(acme, signatures.sign(key, digest)).state == State.READY
    client.post(f"{KEYS}/{row['id']}/revoke")
    assert rules(signed(acme, signatures.sign(key, digest))) == ["signature-revoked"]


def test_what_was_uploaded_before_signatures_were_asked_for_is_rejected_after(
    acme: Tenant, key: Ed25519PrivateKey, push: Callable[..., Version], django_capture_on_commit_callbacks: Commits
) -> None:
    version = push(acme, "support", validate=False)
    add_signing_key(acme, "ci", public(key), actor=SYSTEM)
    require_signatures(acme, True, actor=SYSTEM)
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(version.pk) == State.REJECTED
    version.refresh_from_db()
    assert rules(version) == ["signature-missing"]


@pytest.mark.parametrize("signature", ["x", "AAAA", "é" * 10, base64.b64encode(bytes(63)).decode()])
def test_a_signature_that_is_none_is_a_400(
    acme: Tenant, base: BaseModel, client_of: Clients, folder: Path, signature: str, left_behind: Callable[[], set[str]]
) -> None:
    with (folder / CONFIG).open("rb") as config:
        form = {"a": config, "signature": signature}
        answer = client_of(acme).post("/api/v1/adapters/support/versions", form, format="multipart")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "signature")
    assert left_behind() == set()


def test_the_command_line_signs_what_the_platform_takes(
    acme: Tenant, key: Ed25519PrivateKey, digest: str, folder: Path, tmp_path: Path, signed: Callable[..., Version]
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    argv = [sys.executable, "-m", "adapters.signatures", str(path), str(folder)]
    said, signature = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert said == digest
    add_signing_key(acme, "ci", public(key), actor=SYSTEM)
    assert signed(acme, signature).state == State.READY
