"""Takes files in, in parts and in any order, until a version takes them or their time is up.

Everything that happens to an upload holds its row, so that parts, completion and expiry come one after the other.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from adapters.limits import DEFAULT
from audit.models import Action
from audit.services import SYSTEM, Actor, record
from registry import assembly
from registry.errors import (
    PartsMissing,
    UploadClosed,
    UploadNotFound,
    UploadOverfull,
    UploadTooLarge,
)
from registry.intake import OPEN_FOR, Part, Upload, UploadState
from registry.models import Version
from registry.quarantine import Landing
from registry.services import quotas
from tenants.models import Tenant

MAX_PARTS = 10_000
FORGOTTEN = timedelta(hours=1)  # longer than a file takes from the first byte of its folder to its row


@transaction.atomic
def create_upload(
    tenant: Tenant,
    *,
    filename: str,
    purpose: str,
    bytes: int,
    actor: Actor,
    mime_type: str = "",
    keep_seconds: int | None = None,
) -> Upload:
    """Announce a file of so many bytes, which count from now on. Raises UploadTooLarge, QuotaExceeded."""
    if bytes > DEFAULT.total:
        raise UploadTooLarge(DEFAULT.total)
    quotas.check(tenant, bytes=bytes, uploads=1)
    upload = Upload(tenant=tenant, filename=filename, purpose=purpose, mime_type=mime_type, bytes=bytes)
    upload.uploader = str(actor)
    upload.expires_at = timezone.now() + OPEN_FOR
    upload.keep_seconds = keep_seconds or upload.keep_seconds
    upload.save(force_insert=True)
    data = {"bytes": bytes, "purpose": purpose, "filename": filename}
    record(Action.UPLOAD_CREATED, tenant=tenant, actor=actor, target=str(upload), data=data)
    return upload


@transaction.atomic
def add_part(upload: Upload, received: Landing) -> Part:
    """Take a part in; one that is there already is given back. Raises UploadClosed, UploadOverfull."""
    sha256, size = assembly.sha256_of(received.path), received.path.stat().st_size
    upload = _locked(upload)
    if known := upload.parts.filter(sha256=sha256, size=size).first():
        return known
    if not upload.is_open:
        raise UploadClosed(upload.state)
    room = upload.bytes - upload.received
    if not 0 < size <= room or upload.parts.count() >= MAX_PARTS:
        raise UploadOverfull(upload.bytes, room, size)
    part = upload.parts.create(size=size, sha256=sha256)
    assembly.keep(upload.pk, part.pk, received.path)
    return part


@transaction.atomic
def complete_upload(
    upload: Upload, part_ids: Sequence[str], *, actor: Actor, md5: str | None = None, sha256: str | None = None
) -> Upload:
    """Make one file of the parts, in this order. Completing again in the same way changes nothing.

    Raises UploadClosed, PartsMissing unless the parts are the upload's and add up to what was announced, and
    ChecksumMismatch; then the upload is as it was.
    """
    upload = _locked(upload)
    if upload.state in (UploadState.COMPLETED, UploadState.USED) and upload.part_ids == list(part_ids):
        return upload
    if not upload.is_open:
        raise UploadClosed(upload.state)
    sums = assembly.assemble(upload.pk, _ordered(upload, part_ids))
    expected = {"md5": md5, "sha256": sha256}
    assembly.check(upload.pk, sums, {name: value for name, value in expected.items() if value is not None})
    upload.state, upload.sha256, upload.part_ids = UploadState.COMPLETED, sums.sha256, list(part_ids)
    upload.file_expires_at = timezone.now() + timedelta(seconds=upload.keep_seconds)
    upload.save(update_fields=["state", "sha256", "part_ids", "file_expires_at"])
    data = {"bytes": sums.size, "sha256": sums.sha256}
    record(Action.UPLOAD_COMPLETED, tenant=upload.tenant, actor=actor, target=str(upload), data=data)
    transaction.on_commit(partial(assembly.forget_parts, upload.pk), robust=True)
    return upload


@transaction.atomic
def receive_file(tenant: Tenant, received: Landing, *, bytes: int, actor: Actor, **about: Any) -> Upload:
    """A file that comes in one piece: an upload of one part, complete at once."""
    upload = create_upload(tenant, bytes=bytes, actor=actor, **about)
    part = add_part(upload, received)
    return complete_upload(upload, [part.public_id], actor=actor)


@transaction.atomic
def cancel_upload(upload: Upload, *, actor: Actor) -> Upload:
    """Forget the parts. Cancelling again changes nothing. Raises UploadClosed for one that is complete or expired."""
    upload = _locked(upload)
    if upload.state == UploadState.CANCELLED:
        return upload
    if upload.state != UploadState.PENDING:
        raise UploadClosed(upload.state)
    return _close(upload, UploadState.CANCELLED, Action.UPLOAD_CANCELLED, actor)


@transaction.atomic
def drop_file(upload: Upload, *, actor: Actor) -> Upload:
    """Delete a completed upload's file. Raises UploadNotFound when it is gone already."""
    upload = _locked(upload)
    if upload.state != UploadState.COMPLETED:
        raise UploadNotFound
    return _close(upload, UploadState.DROPPED, Action.FILE_DROPPED, actor)


def use(uploads: Sequence[Upload], version: Version) -> None:
    """Hand completed files over to a version, in its transaction. Raises UploadClosed if one was faster taken."""
    for upload in uploads:
        row = Upload.objects.filter(pk=upload.pk, tenant=version.adapter.tenant, state=UploadState.COMPLETED)
        if row.update(state=UploadState.USED, version=version) != 1:
            raise UploadClosed(Upload.objects.get(pk=upload.pk).state)
        transaction.on_commit(partial(assembly.discard, upload.pk), robust=True)


def expire_uploads() -> int:
    """Close what is overdue and sweep what dead processes left. Returns how many were closed."""
    overdue = list(Upload.objects.overdue(timezone.now()).values_list("pk", flat=True))
    closed = sum(_expire(upload) for upload in overdue)
    assembly.sweep(Upload.objects.open().values_list("pk", flat=True), FORGOTTEN.total_seconds())
    return closed


@transaction.atomic
def _expire(pk: UUID) -> bool:
    overdue = Upload.objects.overdue(timezone.now()).select_related("tenant")
    upload = overdue.select_for_update(of=("self",), skip_locked=True).filter(pk=pk).first()
    if upload is None:
        return False
    pending = upload.state == UploadState.PENDING
    _close(upload, UploadState.EXPIRED if pending else UploadState.DROPPED, Action.UPLOAD_EXPIRED, SYSTEM)
    return True


def _close(upload: Upload, state: UploadState, action: Action, actor: Actor) -> Upload:
    upload.state = state
    upload.save(update_fields=["state"])
    record(action, tenant=upload.tenant, actor=actor, target=str(upload))
    transaction.on_commit(partial(assembly.discard, upload.pk), robust=True)
    return upload


def _locked(upload: Upload) -> Upload:
    return Upload.objects.select_for_update(of=("self",)).select_related("tenant").get(pk=upload.pk)


def _ordered(upload: Upload, part_ids: Sequence[str]) -> list[UUID]:
    known = {part.public_id: part for part in upload.parts.all()}
    strange = next((part_id for part_id in part_ids if part_id not in known), None)
    if strange is not None:
        raise PartsMissing(f"The upload has no part {strange[:100]!r}.")
    parts = [known[part_id] for part_id in part_ids]
    if (size := sum(part.size for part in parts)) != upload.bytes:
        raise PartsMissing(f"The parts have {size:,} bytes together, where {upload.bytes:,} were announced.")
    return [part.pk for part in parts]
