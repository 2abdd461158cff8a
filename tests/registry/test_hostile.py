"""Hundreds of uploads that nobody should accept, all the way: none becomes ready, and nothing of them stays."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from django.core.files.base import ContentFile
from hypothesis import given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from adapters.files import CONFIG, WEIGHTS
from audit.services import SYSTEM
from registry.errors import UploadMalformed
from registry.models import Adapter, Alias, BaseModel, Blob, State, Version
from registry.services import ensure_adapter, upload_version, validate_version
from tenants.models import Tenant
from tests.adapters.builders import BASE
from tests.adapters.test_hostile import GOOD, UPLOADS, hostile_archives

Commits = Callable[..., AbstractContextManager[Any]]
Files = list["ContentFile[bytes]"]
LeftBehind = Callable[[], set[str]]
KEYS = {"rule", "severity", "message", "tensor", "expected", "found", "count"}


@pytest.fixture
def handmade(acme: Tenant) -> Adapter:
    """An adapter of the base model that the hand-made uploads are for."""
    BaseModel.objects.create(name="handmade", source="nowhere", spec=BASE.to_json(), is_default=True)
    return ensure_adapter(acme, "support", actor=SYSTEM)


def outcome(adapter: Adapter, files: Files, commits: Commits) -> Version | None:
    """What became of an upload; None if it was not even taken in."""
    with commits(execute=True):
        try:
            version = upload_version(adapter, files, actor=SYSTEM, enqueue=False)
        except UploadMalformed:
            return None
        validate_version(version.pk)
    return Version.objects.get(pk=version.pk)


def hostile(folder: Path) -> Iterator[tuple[str, Files]]:
    for upload in (each for number, each in enumerate(UPLOADS) if number % 3):  # tests/adapters sees to them all
        files: Any = upload.values[0]
        yield str(upload.id), [ContentFile(content, name) for name, content in files.items()]
    folder.mkdir()
    for path in hostile_archives(folder):
        yield path.name, [ContentFile(path.read_bytes(), path.name)]


def test_every_hostile_upload_is_rejected_by_a_report_and_nothing_of_it_stays(
    handmade: Adapter, tmp_path: Path, left_behind: LeftBehind, django_capture_on_commit_callbacks: Commits
) -> None:
    seen, refused_at_once = 0, 0
    for title, files in hostile(tmp_path / "archives"):
        version, seen = outcome(handmade, files, django_capture_on_commit_callbacks), seen + 1
        if version is None:
            refused_at_once += 1
            continue
        assert version.state == State.REJECTED, title
        assert all(set(finding) == KEYS and finding["message"] for finding in version.findings), title
        assert "error" in {finding["severity"] for finding in version.findings}, title
        if seen % 20 == 0:
            assert left_behind() == set(), title
    assert seen >= 300
    assert refused_at_once <= 5
    assert left_behind() == set()
    assert not Alias.objects.exists()
    assert not Blob.objects.exists()
    good = outcome(handmade, [ContentFile(raw, name) for name, raw in GOOD.items()], django_capture_on_commit_callbacks)
    assert good is not None
    assert good.state == State.READY


NAMES = st.one_of(
    st.text(min_size=1, max_size=300),
    st.sampled_from(
        [CONFIG, WEIGHTS, CONFIG.upper(), "../x", "/etc/x", "a\\b", "x\0y", ".", "..", "con", "\u202egpj.exe"]
    ),
)


@settings(max_examples=40)
@given(names=st.lists(NAMES, max_size=4), content=st.binary(max_size=200))
def test_whatever_names_a_client_thinks_of_stay_in_the_quarantine_and_go(
    handmade: Adapter,
    client_of: Callable[..., APIClient],
    home: Path,
    left_behind: LeftBehind,
    django_capture_on_commit_callbacks: Commits,
    names: list[str],
    content: bytes,
) -> None:
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="part%d"; filename="%s"\r\n\r\n%s\r\n'
        % (number, name.encode("utf-8", "replace"), content)
        for number, name in enumerate(names)
    ]
    client = client_of(handmade.tenant)
    with django_capture_on_commit_callbacks(execute=True):
        path, kind = "/api/v1/adapters/support/versions", "multipart/form-data; boundary=x"
        answer = client.post(path, b"".join(parts) + b"--x--\r\n", content_type=kind)
        if answer.status_code == 202:
            validate_version(answer.json()["id"])
    assert answer.status_code in (202, 400)
    assert not Version.objects.exclude(state=State.REJECTED).exists()
    assert left_behind() == set()
    assert {path.name for path in home.glob("*")} <= {"quarantine", "store"}
