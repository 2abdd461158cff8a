"""A version's signature comes as a file beside its own, in any form that the command line's output is kept in."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from adapters import signatures
from audit.services import SYSTEM
from registry.models import State, Version
from registry.services import add_signing_key, require_signatures, validate_version
from tenants.models import Role

from .conftest import Commits, Yard
from .forms import errors, path

NAMES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture
def key(ours: Yard) -> Ed25519PrivateKey:
    """The one that acme signs with, and must."""
    made = Ed25519PrivateKey.generate()
    public = base64.b64encode(made.public_key().public_bytes_raw()).decode()
    add_signing_key(ours.tenant, "ci", public, actor=SYSTEM)
    require_signatures(ours.tenant, True, actor=SYSTEM)
    return made


def form(yard: Yard, folder: Path, signature: bytes | None = None) -> dict[str, Any]:
    files = [SimpleUploadedFile(name, (folder / name).read_bytes()) for name in NAMES]
    given = {} if signature is None else {"signature": SimpleUploadedFile("signature.txt", signature)}
    return {"adapter": str(yard.adapter.pk), "files": files, **given}


def test_a_signed_version_becomes_ready_and_an_unsigned_one_is_refused_on_the_form(
    desk: Client,
    ours: Yard,
    key: Ed25519PrivateKey,
    peft_folder: Path,
    home: Path,
    django_capture_on_commit_callbacks: Commits,
) -> None:
    assert "signature" in errors(desk.post(path(Version, "add"), form(ours, peft_folder)))
    digest = ours.ready.digest
    text = signatures.sign(key, digest)
    for signature in (text.encode(), f"{digest} {text}\n".encode(), base64.b64decode(text)):
        with django_capture_on_commit_callbacks():
            assert desk.post(path(Version, "add"), form(ours, peft_folder, signature)).status_code == 302
        version = ours.adapter.versions.latest("number")
        assert version.signature == text
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(version.pk) == State.READY
    version.refresh_from_db()
    assert version.signed_by is not None
    assert str(version.signed_by) in desk.get(path(Version, "change", version.pk)).content.decode()
    assert not list(home.rglob("quarantine/incoming/*"))


@pytest.mark.parametrize("signature", [b"x", b"\xff" * 63, b"A" * 2000, b" "])
def test_a_file_that_is_no_signature_is_refused_at_its_field(
    desk: Client, ours: Yard, peft_folder: Path, home: Path, signature: bytes
) -> None:
    count = Version.objects.count()
    assert list(errors(desk.post(path(Version, "add"), form(ours, peft_folder, signature)))) == ["signature"]
    assert Version.objects.count() == count
    assert not list(home.rglob("quarantine/incoming/*"))


def test_a_strangers_key_signs_nothing_of_ours(
    ours: Yard,
    strangers: Yard,
    peft_folder: Path,
    member_of: Callable[..., Client],
    django_capture_on_commit_callbacks: Commits,
) -> None:
    made = Ed25519PrivateKey.generate()
    public = base64.b64encode(made.public_key().public_bytes_raw()).decode()
    add_signing_key(strangers.tenant, "theirs", public, actor=SYSTEM)
    signature = signatures.sign(made, ours.ready.digest).encode()
    with django_capture_on_commit_callbacks():
        member_of(ours.tenant, Role.EDITOR).post(path(Version, "add"), form(ours, peft_folder, signature))
    version = ours.adapter.versions.latest("number")
    with django_capture_on_commit_callbacks(execute=True):
        assert validate_version(version.pk) == State.REJECTED
    version.refresh_from_db()
    assert [finding["rule"] for finding in version.findings] == ["signature-invalid"]
