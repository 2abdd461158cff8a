"""Takes uploads in, and what their makers say of them. What an upload holds is looked at by a worker, never here."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.core.files import File
from django.db import transaction
from django.db.models import Max

from audit.models import Action
from audit.services import Actor, record
from dispatch import send
from registry import assembly, quarantine
from registry.errors import AdapterNotFound, UploadClosed
from registry.intake import Upload
from registry.models import Adapter, Version
from registry.services import quotas, signing, uploads
from registry.services.adapters import locked

TASK = "jobs.tasks.validate_version"
NOTES = 4000  # characters
METRICS = 8 * 1024  # bytes of a version's metrics as JSON


def upload_version(
    adapter: Adapter,
    files: Iterable[File[Any]] = (),
    *,
    received: Sequence[Upload] = (),
    signature: str = "",
    actor: Actor,
    enqueue: bool = True,
    id: uuid.UUID | None = None,
) -> Version:
    """Put the files into quarantine as the adapter's next version and have a worker validate it after the commit.

    The files are what PEFT's save_pretrained writes, or one .zip or .tar.gz of it; they come with the call, or as
    `received` uploads. `signature` is in base64, over the digest that they will have (adapters.signatures). Raises
    UploadTooLarge, UploadMalformed and QuotaExceeded; then, as with any other failure, nothing is left behind and the
    uploads are as they were.
    """
    signing.check_given(adapter.tenant, signature)
    version = Version(id=id or uuid.uuid4(), uploader=str(actor), signature=signature)
    version.size = quarantine.admit(version.id, [*files, *map(_waiting, received)])
    try:
        with transaction.atomic():
            coming = sum(upload.bytes for upload in received)  # which count already
            quotas.check(adapter.tenant, bytes=version.size - coming, versions=1)
            version.adapter = locked(adapter)
            last = version.adapter.versions.aggregate(last=Max("number"))["last"]
            version.number = (last or 0) + 1
            version.save(force_insert=True)
            uploads.use(received, version)
            tenant = version.adapter.tenant
            record(
                Action.VERSION_UPLOADED, tenant=tenant, actor=actor, target=str(version), data={"size": version.size}
            )
            if enqueue:
                transaction.on_commit(lambda: enqueue_validation(version.id), robust=True)
    except BaseException:
        quarantine.discard(version.id)
        raise
    return version


def _waiting(upload: Upload) -> quarantine.Waiting:
    if not assembly.whole(upload.pk).is_file():
        raise UploadClosed(upload.state)
    return quarantine.Waiting(assembly.whole(upload.pk), upload.filename)


def enqueue_validation(version: uuid.UUID) -> None:
    """Ask for a worker. Should the queue be down, the version waits for `revalidate_stale`; the upload stands."""
    send(TASK, str(version))


@transaction.atomic
def annotate_version(version: Version, *, actor: Actor, **changes: Any) -> Version:
    """Set `notes` or `metrics`, what its makers say of a version; its content stays as it is. What stays the same is
    neither written nor recorded. Raises AdapterNotFound for a deleted one, and ValidationError."""
    assert changes.keys() <= {"notes", "metrics"}
    adapter = locked(version.adapter)
    current = adapter.versions.kept().filter(pk=version.pk).first()
    if current is None:
        raise AdapterNotFound
    before = {field: getattr(current, field) for field in changes}
    after = {field: value for field, value in changes.items() if value != before[field]}
    if not after:
        return current
    check_notes(after.get("notes", ""))
    check_metrics(after.get("metrics", {}))
    for field, value in after.items():
        setattr(current, field, value)
    current.save(update_fields=[*after, "changed_at"])
    data = {"before": {field: before[field] for field in after}, "after": after}
    record(Action.VERSION_ANNOTATED, tenant=adapter.tenant, actor=actor, target=str(version), data=data)
    return current


def check_notes(notes: str) -> None:
    """Raises ValidationError for more than NOTES characters, or one that the database can't keep."""
    if len(notes) > NOTES or "\0" in notes:
        raise ValidationError({"notes": f"{NOTES:,} characters at most, and no zero characters."})


def check_metrics(metrics: Any) -> None:
    """Raises ValidationError unless it is a JSON object of METRICS bytes at most that the database can keep."""
    try:
        text = json.dumps(metrics, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationError({"metrics": "That is not an object of finite numbers, texts and lists."}) from error
    if not isinstance(metrics, dict) or b"\\u0000" in text:
        raise ValidationError({"metrics": "Send an object of names and values, without zero characters."})
    if len(text) > METRICS:
        raise ValidationError({"metrics": f"That has {len(text):,} bytes; {METRICS:,} are allowed."})
