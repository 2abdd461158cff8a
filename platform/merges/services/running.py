"""Does merges. Runs in a worker; killed at any point, it can be run again and goes on where it was.

What decides is the lease: of two workers on one merge one settles it, and the other stops when it next says how far it
is. Files are written whole or not at all, and equal whoever writes them.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now
from django.utils import timezone

from adapters.base import BaseSpec
from adapters.errors import BaseModelError, Finding, MergeError, Rejected, StoreError
from adapters.merge.arithmetic import Recipe
from adapters.merge.checkpoint import read_checkpoint
from adapters.merge.combination import merge_adapters, open_part
from adapters.merge.standalone import SHARD, Plan, plan_merge, seal, write
from adapters.merge.verification import verify
from adapters.store import Store
from dispatch import SOON, at_work, idle, over
from merges import folders
from merges.models import Kind, Merge, State
from merges.services import leases
from merges.services.keeping import tidy_merges
from merges.services.leases import Lease, Lost, NoRoom
from merges.services.requests import QUEUED, TASK, enqueue, unattended
from registry.errors import SignatureRequired
from tenants.errors import PlatformError

log = logging.getLogger(__name__)

SHIFT = 40 * 60.0  # seconds; below CELERY_TASK_TIME_LIMIT
SHORT = 60.0  # seconds of a shift while other tenants wait
TOLD_EVERY = 1.0  # seconds
REFUSALS = (MergeError, Rejected, StoreError, BaseModelError, PlatformError, NoRoom)
RULES = ((NoRoom, "no-room"), (SignatureRequired, "signature-missing"))
PASSES = 5  # through the bytes of all weights: written, hashed, and read for three answers


class ShiftOver(Exception):
    """Enough for one task."""


class Interrupted(Exception):
    """Others are to have their turn."""


class Shift:
    """Counts what a merge has done, tells it once a second, and ends with its time.

    It ends early for others who wait, once it has finished a file that the next shift need not write again.
    """

    def __init__(self, lease: Lease, total: int, seconds: float, others_wait: Callable[[], bool]) -> None:
        self._lease = lease
        self._total = total
        self._end = time.monotonic() + seconds
        self._short = time.monotonic() + SHORT
        self._others_wait = others_wait
        self._finished = self._files()
        self._next = 0.0
        self._done = 0

    def __call__(self, stage: str, count: int) -> None:
        """Raises Lost, ShiftOver and Interrupted."""
        self._done += count
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + TOLD_EVERY
        leases.keep(self._lease, stage=stage, done=self._done, total=self._total)
        if now > self._end:
            raise ShiftOver
        if stage == "merging" and now > self._short and self._makes_room():
            raise Interrupted

    def _makes_room(self) -> bool:
        return self._files() > self._finished and self._others_wait()

    def _files(self) -> int:
        return sum(1 for _ in folders.result(self._lease.merge.pk).glob("*.safetensors"))


def nobody_waits() -> bool:
    return False


def run_merge(
    merge_id: UUID, others_wait: Callable[[], bool] = nobody_waits, *, seconds: float = SHIFT
) -> State | None:
    """Work on one merge; its state when this call settled it, None when it didn't. Repeatable."""
    with at_work(merge_id):
        lease = leases.claim(merge_id)
        if lease is None:
            return None
        try:
            return _run(lease, seconds, others_wait)
        except Lost:
            tidy_merges()
            return None


def resume_merges() -> int:
    """Ask again for workers for merges that never met one, or lost theirs. Returns how many.

    While messages wait, nobody asks for those that lost theirs: any message serves whoever's turn it is.
    """
    calm = idle(TASK)
    lost = {*_unclaimed(calm), *(unattended() if calm else ())}
    for merge in lost:  # a running one stays claimable
        Merge.objects.filter(pk=merge, state=State.QUEUED).update(leased_until=Now() + QUEUED)
        enqueue(merge)
    return len(lost)


def _unclaimed(calm: bool) -> list[UUID]:
    """Merges whose message was lost; while messages wait, theirs may be among them."""
    queued, late = Merge.objects.filter(state=State.QUEUED), over("leased_until", QUEUED)
    if calm:
        late |= Q(leased_until__lt=Now() + QUEUED - SOON)
    return list(queued.filter(late).values_list("pk", flat=True))


def _run(lease: Lease, seconds: float, others_wait: Callable[[], bool]) -> State | None:
    """Raises Lost, and what a bug or a broken disk raises: then the lease runs out, and it is tried again."""
    try:
        work = _into_base if lease.merge.kind == Kind.CHECKPOINT else _combine
        return work(lease, partial(Shift, lease, seconds=seconds, others_wait=others_wait))
    except ShiftOver:
        leases.hand_over(lease)
        return None
    except Interrupted:
        leases.make_room(lease)
        return None
    except REFUSALS as error:
        return leases.fail(lease, _finding(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return leases.fail(lease, Finding("no-room", "The platform's disk is full; ask again later."))


def _finding(error: Exception) -> Finding:
    match error:
        case MergeError():
            return error.finding
        case Rejected():
            return error.findings[0]
        case StoreError():
            return Finding("source-gone", "The stored files of a version that was to be merged are gone or damaged.")
        case BaseModelError():
            log.error("a base model can't be merged into: %s", error)  # it names a folder, which is nobody's to know
            return Finding("base-unusable", "The worker can't read the base model's files; tell the operator.")
        case _:  # there is no room, or the new version was not taken in
            return Finding(next((rule for kind, rule in RULES if isinstance(error, kind)), "refused"), str(error))


def _into_base(lease: Lease, shift_of: Callable[[int], Shift]) -> State:
    merge = lease.merge
    (adapter,) = _fetch(merge)
    base = BaseSpec.from_json(merge.base_model.spec)
    plan = plan_merge(adapter, base, merge.base_model.source, shard=SHARD)
    leases.reserve(lease, plan.size)
    shift = shift_of(PASSES * plan.weights)
    folder = folders.result(merge.pk)
    write(plan, folder, shift)
    merged = read_checkpoint(str(folder))
    agreement = verify(merged, plan.checkpoint, plan.changes, base, plan.dtype, shift)
    files = seal(folder, {**_provenance(merge, plan), "verified": asdict(agreement)}, shift)
    return leases.finish_checkpoint(lease, files, asdict(agreement))


def _combine(lease: Lease, shift_of: Callable[[int], Shift]) -> State:
    merge = lease.merge
    base = BaseSpec.from_json(merge.base_model.spec)
    parts = [
        open_part(source["name"], source["weight"], folder, base, merge.base_model.source)
        for source, folder in zip(merge.sources, _fetch(merge), strict=True)
    ]
    folder = folders.result(merge.pk)
    total = sum(tensor.nbytes for part in parts for tensor in part.changes.tensors)
    shift = shift_of(total)
    merge_adapters(
        parts,
        _recipe(merge),
        base,
        folder,
        seed=merge.options.get("seed", 0),
        provenance=_ingredients(merge),
        progress=shift,
    )
    return leases.finish_version(lease, folder)


def _fetch(merge: Merge) -> list[Path]:
    """The adapters' files, each in a folder of its own and hashed on the way."""
    store, folder = Store(settings.LORAYARD.store_url), folders.sources(merge.pk)
    fetched = [folder / str(number) for number in range(len(merge.sources))]
    for source, into in zip(merge.sources, fetched, strict=True):
        store.fetch(source["digest"], into)
    return fetched


def _recipe(merge: Merge) -> Recipe:
    options = merge.options
    sign = options.get("majority_sign", "total")
    return Recipe(merge.method, options.get("density", 1.0), options.get("rank", 0), sign)  # type: ignore[arg-type]


def _ingredients(merge: Merge) -> dict[str, Any]:
    """What a combination is made of, by content alone, so that equal merges give equal files."""
    sources = [{"digest": source["digest"], "weight": source["weight"]} for source in merge.sources]
    return {"method": merge.method, "options": merge.options, "sources": sources}


def _provenance(merge: Merge, plan: Plan) -> dict[str, Any]:
    (source,) = merge.sources
    return {
        "kind": "a base model with an adapter merged into it",
        "base_model": merge.base_model.name,
        "architecture": plan.base.architecture,
        "adapter": {"name": source["name"], "digest": source["digest"]},
        "merge": str(merge.pk),
        "merged_at": timezone.now().isoformat(timespec="seconds"),
        "dtype": plan.dtype,
        "embedding_and_head_parted": plan.untied,
    }
