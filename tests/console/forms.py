"""What tests of the console's forms share: where a form is, what it answered, and what is on the record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from audit.models import Action, Event
from registry.models import Adapter, Version
from registry.services import validate_version

from .conftest import Commits

PLAINTEXT = re.compile(r"ly_[0-9a-f]{12}_[0-9a-f]{64}")
NAMES = ("adapter_config.json", "adapter_model.safetensors")


def path(model: type[Any], page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


def recorded(action: Action) -> Event:
    return Event.objects.filter(action=action).latest("id")


def assert_by(event: Event, user: User) -> None:
    assert (event.actor_kind, event.actor_id, event.address) == ("user", str(user.pk), "192.0.2.7")
    assert event.request_id


def errors(answer: Any) -> dict[str, list[str]]:
    assert answer.status_code == 200
    return {name: list(messages) for name, messages in answer.context["form"].errors.items()}


def two_files(folder: Path) -> list[SimpleUploadedFile]:
    return [SimpleUploadedFile(name, (folder / name).read_bytes()) for name in NAMES]


def ready(desk: Client, adapter: Adapter, folder: Path, commits: Commits) -> Version:
    with commits():
        desk.post(path(Version, "add"), {"adapter": str(adapter.pk), "files": two_files(folder)})
    version = adapter.versions.latest("number")
    with commits(execute=True):
        validate_version(version.pk)
    return adapter.versions.get(pk=version.pk)
