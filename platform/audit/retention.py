"""Moves old events out of the database into sealed segments, a beat's job. The chain stays verifiable over both.

A segment is an export (`audit.proof`) in the artifact store; its row holds the file's hash under our signature. Events
are deleted only when the file was read back, in the transaction that writes the segment's row, and the sealing is an
event itself. The trigger lets nobody delete but the tables' owner, and nothing but what a segment holds.
"""

import hashlib
import logging
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Max
from django.utils import timezone

from audit import archive, exports, proof, signing
from audit.models import PLATFORM_CHAIN, Action, Chain, Event, Leaf, Segment
from audit.services import SYSTEM, locked, record_in
from audit.strays import evidence, strays

log = logging.getLogger(__name__)

LARGEST = 10_000


class NotKept(Exception):
    """The store did not give back what was written; nothing was deleted."""


def seal_old() -> int:
    """Seal what is older than LORAYARD_AUDIT_RETENTION_DAYS (0: nothing is). Returns the number of segments."""
    days: int = settings.LORAYARD.audit_retention_days
    if not days:
        return 0
    before = timezone.now() - timedelta(days=days)
    count = 0
    for chain in Chain.objects.order_by("pk"):
        while seal(chain, before) is not None:
            count += 1
    return count


@transaction.atomic
def seal(chain: Chain, before: datetime, largest: int = LARGEST) -> Segment | None:
    """Seal the oldest events of a chain, up to a signed head; None when none is that old, another seals already, or
    `audit.strays` finds evidence that one more segment could cover up.

    The chain itself is locked only after the file was written, so that nobody's change waits for the store. Raises
    NotKept, and OSError when the store can't be reached; then nothing has changed.
    """
    if not _alone(chain):
        return None
    if not _tidy(chain):
        return None
    first = (chain.segments.aggregate(last=Max("last"))["last"] or 0) + 1
    old = Event.objects.filter(chain=chain, number__lt=first + largest, created_at__lt=before)
    newest = old.aggregate(last=Max("number"))["last"] or 0
    leaf = chain.leaves.filter(length__range=(first, newest)).order_by("-length").first()
    if leaf is None:
        return None
    segment = _write(chain, first, leaf)
    chain = locked(chain.pk)
    _release(segment)
    tenant = None if chain.pk == PLATFORM_CHAIN else chain.pk
    data = {"first": segment.first, "last": segment.last, "sha256": segment.sha256}
    record_in(chain, Action.AUDIT_SEALED, tenant_id=tenant, actor=SYSTEM, target="audit", data=data)
    return segment


def _tidy(chain: Chain) -> bool:
    """Take away what a process left that died before it was done. Whether the chain is as its segments' rows say."""
    kept = evidence(chain)
    for path in set(strays(chain)) - set(kept):
        archive.remove(path)
    for path in kept:
        log.error("%s holds signed events that the database no longer has; nothing more of that chain is sealed", path)
    return not kept


def _alone(chain: Chain) -> bool:
    """Whether nobody else seals this chain, until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0))", [f"audit:seal:{chain.pk}"])
        return bool(cursor.fetchone()[0])


def _write(chain: Chain, first: int, leaf: Leaf) -> Segment:
    content = exports.sealed(chain, first, leaf.length)
    segment = Segment(chain=chain, first=first, last=leaf.length, head=leaf.head, size=len(content))
    segment.created_at = timezone.now()
    segment.sha256 = hashlib.sha256(content).hexdigest()
    archive.write(segment.path, content)
    kept = archive.read(segment.path)
    report = proof.verify(kept.decode().splitlines(), signing.public_key())
    if kept != content or report.faults or report.signed != leaf.length:
        raise NotKept(f"{segment} is not what was written")
    segment.signature, segment.key = signing.sign(proof.SEGMENT, segment.content())
    segment.save(force_insert=True)
    return segment


def _release(segment: Segment) -> None:
    """The one guarded way out for events."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL lorayard.audit_sealing = 'on'")
        cursor.execute(
            "DELETE FROM audit_event WHERE chain_id = %s AND number BETWEEN %s AND %s",
            [segment.chain_id, segment.first, segment.last],
        )
        cursor.execute("SET LOCAL lorayard.audit_sealing = ''")
