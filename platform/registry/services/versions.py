"""Takes uploads in and archives versions. What an upload holds is looked at by a worker, never here."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from celery import current_app
from django.core.files import File
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from audit.models import Action
from audit.services import Actor, record
from registry import assembly, quarantine
from registry.errors import AliasNeeded, UploadClosed, VersionNotReady
from registry.intake import Upload
from registry.models import Adapter, State, Version
from registry.services import quotas, signing, uploads
from registry.services.adapters import locked

TASK = "jobs.tasks.validate_version"


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
    current_app.signature(TASK, args=(str(version),)).apply_async(retry=False)


@transaction.atomic
def archive_version(version: Version, *, actor: Actor) -> Version:
    """Take a ready version out of service for good; pinned names stop too. Raises AliasNeeded, VersionNotReady."""
    adapter = locked(version.adapter)
    names = list(adapter.aliases.filter(version=version).values_list("name", flat=True))
    if names:
        raise AliasNeeded(f"The alias {names[0]!r} points to v{version.number}; move it first.")
    ready = adapter.versions.filter(pk=version.pk, state=State.READY)
    if ready.update(state=State.ARCHIVED, changed_at=timezone.now()) != 1:
        raise VersionNotReady(f"v{version.number} is not ready, so it can't be archived.")
    record(Action.VERSION_ARCHIVED, tenant=adapter.tenant, actor=actor, target=str(version))
    return adapter.versions.get(pk=version.pk)
