"""Finds whatever was done to the audit log since it was written. Reads, and changes nothing.

Three things have to agree: each event with its hash and its predecessor's; each chain with the heads that checkpoints
signed; the checkpoints with their signatures, each other and the copy in the artifact store.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal
from uuid import UUID

from django.db import connection, models, transaction

from audit import archive, checkpoints, proof, signing
from audit.models import Chain, Checkpoint, Leaf, Segment
from audit.strays import evidence, number_in

Kind = Literal["edited", "missing", "reordered", "inserted", "rewritten", "forged"]
RECENT = 1000  # checkpoints that are looked at when only one tenant's chain is verified
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Problem:
    """One place where the log no longer is what was written."""

    chain: str
    number: int
    kind: Kind
    message: str

    def __str__(self) -> str:
        return f"{self.chain} #{self.number}: {self.kind}: {self.message}"


@dataclass(frozen=True)
class Link:
    """One event, wherever it is kept, as far as the chain goes."""

    number: int
    previous: str
    hash: str
    computed: str


def verify(tenant: models.Model | None = None) -> list[Problem]:
    """Every edited, missing, inserted, reordered, rewritten or forged piece of the tenant's chain; None: of all."""
    with _one_moment():
        chains = Chain.objects.order_by("pk")
        if tenant is not None:
            chains = chains.filter(pk=tenant.pk)
        problems = [problem for chain in chains for problem in _chain(chain)]
        problems += _gone(Leaf.objects.all() if tenant is None else Leaf.objects.filter(chain=tenant.pk))
        checked = _whole if tenant is None else partial(_leaf_of, tenant.pk)
        return problems + list(_checkpoints(checked, None if tenant is None else RECENT))


@contextmanager
def _one_moment() -> Iterator[None]:
    """All reads see the same state, whatever is appended or sealed meanwhile."""
    if connection.in_atomic_block:
        yield
        return
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


def _chain(chain: Chain) -> Iterator[Problem]:
    name = str(chain)
    signed = dict(chain.leaves.values_list("length", "head"))
    number, previous = 0, ""
    segments = list(chain.segments.order_by("first"))
    yield from _segments(name, segments)
    for path in evidence(chain):
        yield Problem(
            name, number_in(path), "missing", f"the row of the segment {path} is gone; its file is signed by us"
        )
    for link in _links(chain, segments):
        if link.number != number + 1:
            yield Problem(name, number + 1, "missing", f"events {number + 1} to {link.number - 1} are gone")
        elif link.previous != previous:
            yield Problem(name, link.number, "reordered", "does not follow the event before it")
        if link.hash != link.computed:
            yield Problem(name, link.number, "edited", "its content does not give its hash")
        if signed.pop(link.number, link.hash) != link.hash:
            yield Problem(name, link.number, "rewritten", "is not the event that a checkpoint signed")
        number, previous = link.number, link.hash
    if number != chain.length:
        yield Problem(name, number + 1, "missing", f"events {number + 1} to {chain.length} are gone")
    elif previous != chain.head:
        yield Problem(name, number, "edited", "the last event is not the one that was written")
    if signed and max(signed) > number:
        yield Problem(name, max(signed), "missing", "a checkpoint signed an event that is gone")
    sealed = segments[-1].last if segments else 0
    odd = chain.events.filter(models.Q(number__gt=chain.length) | models.Q(number__lte=sealed))
    for event in odd.order_by("number"):
        yield Problem(name, event.number, "inserted", "stands where no event was written")


def _gone(leaves: models.QuerySet[Leaf]) -> Iterator[Problem]:
    """Chains that were signed and have no row any more."""
    orphans = leaves.filter(~models.Exists(Chain.objects.filter(pk=models.OuterRef("chain_id"))))
    for pk in orphans.order_by().values_list("chain_id", flat=True).distinct():
        yield Problem(str(pk), 1, "missing", "the whole chain is gone")


def _segments(name: str, segments: Iterable[Segment]) -> Iterator[Problem]:
    for segment in segments:
        if not signing.trusted(proof.SEGMENT, segment.content(), segment.signature):
            yield Problem(name, segment.first, "forged", f"the segment {segment.path} is not signed by us")
        try:
            kept = hashlib.sha256(archive.read(segment.path)).hexdigest()
        except FileNotFoundError:
            yield Problem(name, segment.first, "missing", f"the segment {segment.path} is gone")
            continue
        if kept != segment.sha256:
            yield Problem(name, segment.first, "edited", f"the segment {segment.path} is not what was sealed")


def _links(chain: Chain, segments: Iterable[Segment]) -> Iterator[Link]:
    """The chain's events in order: from the segments' files, then from the table."""
    sealed = 0
    for segment in segments:
        yield from _of_file(segment)
        sealed = segment.last
    for event in chain.events.filter(number__gt=sealed, number__lte=chain.length).order_by("number").iterator():
        yield Link(event.number, event.previous, event.hash, event.compute_hash())


def _of_file(segment: Segment) -> Iterator[Link]:
    """What can be read of it; `_segments` tells of a file that is gone or spoilt."""
    try:
        lines = archive.read(segment.path).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            item = json.loads(line)
            if item["kind"] == "event":
                event = item["event"]
                yield Link(int(event["number"]), event["previous"], item["hash"], proof.digest(event))
        except (ValueError, KeyError, TypeError):
            continue


def _checkpoints(checked: Callable[[Checkpoint], Iterator[Problem]], recent: int | None) -> Iterator[Problem]:
    newest = Checkpoint.objects.order_by("-number").first()
    number = max(newest.number - recent, 0) if newest and recent else 0
    previous = "" if number == 0 else None
    rows = Checkpoint.objects.filter(number__gt=number).order_by("number")
    for checkpoint in rows.iterator(chunk_size=200):
        if checkpoint.number != number + 1:
            yield Problem(CHECKPOINTS, number + 1, "missing", f"{number + 1} to {checkpoint.number - 1} are gone")
        elif previous not in (None, checkpoint.previous):
            yield Problem(CHECKPOINTS, checkpoint.number, "reordered", "does not follow the one before it")
        yield from _checkpoint(checkpoint)
        yield from checked(checkpoint)
        number, previous = checkpoint.number, checkpoint.hash
    yield from _copy(newest)


def _checkpoint(checkpoint: Checkpoint) -> Iterator[Problem]:
    if checkpoint.hash != proof.digest(checkpoint.content()):
        yield Problem(CHECKPOINTS, checkpoint.number, "edited", "its content does not give its hash")
    if not signing.trusted(proof.CHECKPOINT, checkpoint.content(), checkpoint.signature):
        yield Problem(CHECKPOINTS, checkpoint.number, "forged", "it is not signed by us")


def _whole(checkpoint: Checkpoint) -> Iterator[Problem]:
    leaves = [leaf.content() for leaf in checkpoint.leaves.order_by("id")]
    if len(leaves) != checkpoint.size or not leaves or proof.root_of(leaves) != checkpoint.root:
        yield Problem(CHECKPOINTS, checkpoint.number, "edited", "its heads are not those that were signed")


def _leaf_of(chain: UUID, checkpoint: Checkpoint) -> Iterator[Problem]:
    """What a tenant may read: its own leaf, which must lead to the root."""
    for leaf in checkpoint.leaves.filter(chain=chain):
        if proof.root_from(leaf.content(), leaf.path) != checkpoint.root:
            yield Problem(CHECKPOINTS, checkpoint.number, "forged", "it does not hold this chain's head")


def _copy(newest: Checkpoint | None) -> Iterator[Problem]:
    """The artifact store knows a checkpoint: it must be one of ours."""
    try:
        checkpoints.compare()
    except checkpoints.Diverged as difference:
        yield Problem(CHECKPOINTS, newest.number if newest else 0, difference.kind, str(difference))
