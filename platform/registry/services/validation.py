"""Drives a version from uploaded to ready or rejected. Runs in a worker; killed at any point, it can be run again.

What decides is the compare-and-set at the end: of two workers on one version one settles it, and the other's result is
dropped. The store is content-addressed, so putting twice is putting once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from uuid import UUID

from django.db import DataError, transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from adapters.base import same_model
from adapters.confinement import Cell, Examined
from adapters.errors import Finding, Rejected
from adapters.manifest import Manifest
from audit.models import Action
from audit.services import SYSTEM, record
from dispatch import SOON, at_work, attended, deserted, idle, long_ago
from registry import quarantine
from registry.models import PENDING, BaseModel, State, Version
from registry.services import blobs, quotas, signing, trial
from registry.services.adapters import locked
from registry.services.aliases import name_stable
from registry.services.versions import TASK, enqueue_validation
from tenants.errors import FULL, QuotaExceeded
from tenants.models import Tenant
from tenants.services import hold
from webhooks.services import emit

ATTEMPTS = 5
STALE = timedelta(minutes=6)  # longer than the task's time limit
CROWDED = timedelta(minutes=1)  # between two messages for a deserted version while messages wait
FORGOTTEN = timedelta(hours=1)  # longer than files take from the quarantine's door to their version's row

UNSTORABLE = Finding("report-unstorable", "What was found in the files can't be kept; save the adapter again.")

cell = Cell()


def validate_version(version_id: UUID) -> State | None:
    """Settle one version and return its state; None when it was settled already, or another worker is at it.

    Repeatable.
    """
    with at_work(version_id):
        version = _claim(version_id)
        return _settled(version) if version is not None else None


def _settled(version: Version) -> State | None:
    try:
        if version.attempts > ATTEMPTS:
            raise Rejected.because("validation-failed", "Validation broke off again and again; tell the operator.")
        return _examine(version)
    except Rejected as refusal:
        return _reject(version, refusal.findings)
    except DataError:
        return _reject(version, (UNSTORABLE,))
    except (OSError, ValueError) as error:
        if not Version.objects.pending().filter(pk=version.pk).exists():
            return None  # another worker settled it and took the files away, or is about to
        if isinstance(error, OSError) and error.errno in FULL:
            Version.objects.pending().filter(pk=version.pk).update(attempts=F("attempts") - 1)  # the fault is not its
        raise


def revalidate_stale() -> int:
    """Ask again for workers for versions that never met one, or lost theirs. Returns how many."""
    calm = idle(TASK)
    lost = [*_unclaimed(calm), *_deserted(calm)]
    Version.objects.filter(pk__in=lost, state__in=PENDING).update(changed_at=Now())  # asked for; claimable all the same
    lost += _hanging() if calm else []
    for version in lost:
        enqueue_validation(version)
    return len(lost)


def sweep_quarantine() -> None:
    """Remove what dead processes left there."""
    waiting = Version.objects.pending().values_list("pk", flat=True)
    quarantine.sweep(keep=waiting, older_than=FORGOTTEN.total_seconds())


def _unclaimed(calm: bool) -> list[UUID]:
    """Versions whose message was lost; while messages wait, theirs may be among them."""
    age = SOON if calm else STALE
    return list(Version.objects.filter(long_ago("changed_at", age), state=State.UPLOADED).values_list("pk", flat=True))


def _deserted(calm: bool) -> list[UUID]:
    """Versions whose worker died or failed. They rest four times as long after each attempt, and while others wait."""
    least = timedelta(0) if calm else CROWDED
    rests = [Q(attempts__lte=n) & long_ago("changed_at", max(least, SOON * 4 ** (n - 1))) for n in range(1, ATTEMPTS)]
    begun = Version.objects.filter(reduce(or_, rests, long_ago("changed_at", STALE)), state=State.VALIDATING)
    return deserted(begun.values_list("pk", flat=True))


def _hanging() -> list[UUID]:
    """Versions whose worker is there and has been silent for too long. To mark them would give it more time."""
    begun = Version.objects.filter(long_ago("changed_at", STALE), state=State.VALIDATING)
    return list(begun.values_list("pk", flat=True))


@transaction.atomic
def _claim(version_id: UUID) -> Version | None:
    """Move to validating, or count another attempt at it where nobody else is at it, or has been for too long."""
    changes = {"state": State.VALIDATING, "attempts": F("attempts") + 1, "changed_at": Now()}
    row = Version.objects.filter(pk=version_id)
    first = row.filter(state=State.UPLOADED).update(**changes) == 1
    begun = row.filter(state=State.VALIDATING)
    if attended(version_id):
        begun = begun.filter(long_ago("changed_at", STALE))
    if not first and begun.update(**changes) != 1:
        return None
    version = row.select_related("adapter__tenant", "adapter__base_model").get()
    if first:
        record(Action.VERSION_VALIDATING, tenant=version.adapter.tenant, actor=SYSTEM, target=str(version))
    return version


def _examine(version: Version) -> State | None:
    """Validate a copy of the files and, if it is in order, settle the version. Raises Rejected."""
    files = quarantine.files_of(version.pk)
    if not files:
        raise Rejected.because("upload-lost", "The uploaded files are gone; upload them again.")
    with quarantine.workspace(version.pk) as work:
        base = version.adapter.base_model
        examined = cell.examine(files, work, base.spec)
        return _store(version, replace(examined, notes=(*examined.notes, *_trained_elsewhere(examined, base))), work)


def _trained_elsewhere(examined: Examined, base: BaseModel) -> Iterator[Finding]:
    """Every shape fits, and yet the adapter names another base model: nothing but its maker can know better."""
    trained_on = examined.summary["base_model"]
    if trained_on and not any(same_model(trained_on, name) for name in (base.name, base.source)):
        message = (
            f"The adapter says that it was trained on {trained_on} and is served on {base.name}: all shapes fit, but "
            "if those are different models its answers are worth nothing; if they are one, this can be ignored."
        )
        yield Finding("other-base-model", message, expected=base.name, found=trained_on, severity="warning")


def _store(version: Version, examined: Examined, work: Path) -> State | None:
    manifest = Manifest.of(work)
    blobs.announce(manifest)
    try:
        with transaction.atomic():
            blobs.put(work)  # for the engine to read; again below, under the lock that the acceptance needs
        tried = replace(examined, notes=(*examined.notes, *trial.try_out(version, manifest.digest)))
        with transaction.atomic():
            return _accept(version, tried, blobs.put(work))
    except Rejected:
        blobs.retract(manifest.digest)
        raise


def _accept(version: Version, examined: Examined, manifest: Manifest) -> State | None:
    tenant = hold(version.adapter.tenant)
    adapter = locked(version.adapter)
    key = signing.signer(tenant, version.signature, manifest.digest)
    size = manifest.size
    content = {"digest": manifest.digest, "summary": examined.summary, "size": size, "signed_by": key}
    if not _settle(version, State.READY, findings=[asdict(note) for note in examined.notes], **content):
        return None
    blobs.acquire(adapter.tenant, manifest.digest, size)
    _check_quota(adapter.tenant)
    data = {"digest": manifest.digest, "size": size, **({"signed_by": str(key)} if key else {})}
    record(Action.VERSION_READY, tenant=adapter.tenant, actor=SYSTEM, target=str(version), data=data)
    emit(adapter.tenant, "version.ready", {"version": str(version), "digest": manifest.digest})
    name_stable(adapter, version)
    return State.READY


def _check_quota(tenant: Tenant) -> None:
    """An archive may unpack to more than its tenant has left; then nothing of this happened. Raises Rejected."""
    try:
        quotas.check(tenant, bytes=0, versions=0)
    except QuotaExceeded as error:
        limit, used = (f"{error.numbers[name]} bytes" for name in ("limit", "used"))
        raise Rejected.because("quota-exceeded", str(error), expected=f"at most {limit}", found=used) from error


def _reject(version: Version, findings: tuple[Finding, ...]) -> State | None:
    """A report that the database doesn't take is no reason to go on validating."""
    try:
        return _report(version, findings)
    except DataError:
        return _report(version, (UNSTORABLE,))


@transaction.atomic
def _report(version: Version, findings: tuple[Finding, ...]) -> State | None:
    report = [asdict(finding) for finding in findings]
    if not _settle(version, State.REJECTED, findings=report):
        return None
    data = {"rules": sorted({finding.rule for finding in findings})}
    record(Action.VERSION_REJECTED, tenant=version.adapter.tenant, actor=SYSTEM, target=str(version), data=data)
    emit(version.adapter.tenant, "version.rejected", {"version": str(version), **data})
    return State.REJECTED


def _settle(version: Version, state: State, **content: object) -> bool:
    """Compare and set; the winner's commit takes the files out of quarantine."""
    pending = Version.objects.filter(pk=version.pk, state__in=PENDING)
    won = pending.update(state=state, changed_at=Now(), **content) == 1
    if won:
        transaction.on_commit(lambda: quarantine.discard(version.pk), robust=True)
    return won
