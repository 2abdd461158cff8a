"""Uploads through the console's form: validated by workers, and nothing is left of what is refused."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from adapters.limits import DEFAULT
from audit.models import Action
from registry.models import State, Version
from registry.services import validate_version
from registry.services.versions import TASK
from tenants.models import Role

from .conftest import Commits, Yard
from .forms import NAMES, assert_by, errors, path, recorded, two_files


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What workers have been asked for; the broker is the one thing that these tests do without."""
    sent: list[tuple[str, ...]] = []
    monkeypatch.setattr("registry.services.versions.send", lambda task, *args: sent.append((task, *args)))
    return sent


def test_uploading_peft_s_two_files_queues_a_validation_that_makes_them_ready(
    desk: Client,
    operator: User,
    ours: Yard,
    peft_folder: Path,
    queue: list[tuple[str, ...]],
    django_capture_on_commit_callbacks: Commits,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        answer = desk.post(path(Version, "add"), {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder)})
    version = Version.objects.get(state=State.UPLOADED, number=4)
    assert answer.headers["Location"] == path(Version, "change", version.pk)
    assert queue == [(TASK, str(version.pk))]
    assert version.uploader == f"user:{operator.pk}"
    assert_by(recorded(Action.VERSION_UPLOADED), operator)
    with django_capture_on_commit_callbacks(execute=True):
        validate_version(version.pk)
    page = desk.get(path(Version, "change", version.pk)).content.decode()
    assert "ready" in page
    assert ours.ready.digest in page  # the same files are the same digest


def test_an_archive_is_taken_and_a_rejected_one_says_why(
    desk: Client, ours: Yard, peft_folder: Path, django_capture_on_commit_callbacks: Commits
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(peft_folder / NAMES[0], "../" + NAMES[0])
        archive.write(peft_folder / NAMES[1], NAMES[1])
    file = SimpleUploadedFile("adapter.zip", packed.getvalue())
    with django_capture_on_commit_callbacks():
        desk.post(path(Version, "add"), {"adapter": str(ours.adapter.pk), "files": file})
    version = Version.objects.get(number=4)
    with django_capture_on_commit_callbacks(execute=True):
        validate_version(version.pk)
    version.refresh_from_db()
    page = desk.get(path(Version, "change", version.pk)).content.decode()
    assert version.state == State.REJECTED
    assert version.findings
    assert all(finding["rule"] in page for finding in version.findings)


@pytest.mark.parametrize("files", [[], [SimpleUploadedFile("a.bin", b"")], None])
def test_an_upload_of_nothing_is_refused_and_leaves_nothing(
    desk: Client, ours: Yard, home: Path, files: list[SimpleUploadedFile] | None
) -> None:
    before = sorted(home.rglob("quarantine/*"))
    fields = {"adapter": str(ours.adapter.pk)} | ({"files": files} if files is not None else {})
    assert "files" in errors(desk.post(path(Version, "add"), fields))
    assert Version.objects.count() == 3
    assert not list(home.rglob("quarantine/incoming/*"))
    assert {path for path in before if path.name != "incoming"} <= set(home.rglob("quarantine/*"))


def test_an_upload_over_the_limit_ends_with_a_message_and_leaves_nothing(
    desk: Client, ours: Yard, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.quarantine.DEFAULT", replace(DEFAULT, total=1000))
    big = SimpleUploadedFile(NAMES[1], b"x" * 100_000)
    answer = desk.post(path(Version, "add"), {"adapter": str(ours.adapter.pk), "files": big}, follow=True)
    assert "larger than the 1,000 bytes" in answer.content.decode()
    assert Version.objects.count() == 3
    assert not list(home.rglob("quarantine/incoming/*"))


def test_an_upload_from_another_site_is_refused(operator: User, ours: Yard, peft_folder: Path) -> None:
    victim = Client(enforce_csrf_checks=True)
    victim.force_login(operator)
    fields = {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder)}
    assert victim.post(path(Version, "add"), fields).status_code == 403
    page = victim.get(path(Version, "add")).content.decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token is not None
    fields = {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder), "csrfmiddlewaretoken": token[1]}
    assert victim.post(path(Version, "add"), fields).status_code == 302


def test_files_of_somebody_who_may_not_upload_are_never_kept(
    client: Client, member_of: Callable[..., Client], ours: Yard, peft_folder: Path, home: Path
) -> None:
    def fields() -> dict[str, Any]:
        return {"adapter": str(ours.adapter.pk), "files": two_files(peft_folder)}

    assert client.post(path(Version, "add"), fields()).status_code == 302
    assert member_of(ours.tenant, Role.VIEWER).post(path(Version, "add"), fields()).status_code == 403
    assert Version.objects.count() == 3
    assert not list(home.rglob("quarantine/incoming/*"))
