"""Signs where all chains stand. A beat's job: whatever happens to the rows afterwards, the signature does not follow.

Each checkpoint speaks of the chains that grew since the one before, and names its hash. A copy of the newest lies in
the artifact store, so that taking back the last ones shows too.
"""

import json
from typing import Literal

from django.db import IntegrityError, transaction
from django.db.models import F, OuterRef, Q, Subquery
from django.utils import timezone

from audit import archive, proof, signing
from audit.models import Chain, Checkpoint, Leaf

NEWEST = "checkpoint.json"


class Diverged(Exception):
    """The artifact store's copy and the database tell different stories. `kind` is that of a Problem."""

    def __init__(self, kind: Literal["missing", "rewritten", "forged"], message: str) -> None:
        super().__init__(message)
        self.kind: Literal["missing", "rewritten", "forged"] = kind


def take() -> Checkpoint | None:
    """Sign the heads of the chains that grew; None when none did, or another process was first."""
    try:
        with transaction.atomic():
            return _take()
    except IntegrityError:
        return None


def publish() -> None:
    """Put a copy of the newest checkpoint into the artifact store, unless what lies there contradicts it.

    Raises Diverged, and OSError when the store can't be reached.
    """
    newest = Checkpoint.objects.order_by("-number").first()
    if newest is not None and compare() < newest.number:
        archive.write(NEWEST, json.dumps(shown(newest)).encode())


def compare() -> int:
    """The number of the checkpoint in the artifact store, 0 if there is none. Raises Diverged unless it is ours."""
    try:
        copy = json.loads(archive.read(NEWEST))
        content, signature = dict(copy["checkpoint"]), str(copy["signature"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        raise Diverged("forged", "the copy in the artifact store can't be read") from None
    if not signing.trusted(proof.CHECKPOINT, content, signature):
        raise Diverged("forged", "the copy in the artifact store is not signed by us")
    known = Checkpoint.objects.filter(number=content["number"]).first()
    if known is None:
        raise Diverged("missing", f"the artifact store has a copy of checkpoint {content['number']}, which is gone")
    if known.hash != proof.digest(content):
        raise Diverged("rewritten", f"checkpoint {known.number} is not the one that the artifact store has a copy of")
    return known.number


def shown(checkpoint: Checkpoint) -> proof.Json:
    return {"checkpoint": checkpoint.content(), "key": checkpoint.key, "signature": checkpoint.signature}


def newest_leaf(chain: Chain, upto: int) -> Leaf | None:
    """The last signed word on the chain that speaks of its event `upto` or an earlier one."""
    return chain.leaves.filter(length__lte=upto).select_related("checkpoint").order_by("-length").first()


def proof_of(leaf: Leaf) -> proof.Json:
    """The leaf's checkpoint and the path to its root, as exports hold it."""
    return {"kind": "proof", **shown(leaf.checkpoint), "leaf": leaf.content(), "path": leaf.path}


def _take() -> Checkpoint | None:
    signed = Leaf.objects.filter(chain=OuterRef("pk")).order_by("-length").values("length")[:1]
    grown = Chain.objects.annotate(signed=Subquery(signed)).filter(
        Q(signed=None, length__gt=0) | Q(length__gt=F("signed"))
    )
    leaves = [Leaf(chain=chain, length=chain.length, head=chain.head) for chain in grown.order_by("pk")]
    if not leaves:
        return None
    contents = [leaf.content() for leaf in leaves]
    last = Checkpoint.objects.order_by("-number").first()
    checkpoint = Checkpoint(
        number=last.number + 1 if last else 1,
        created_at=timezone.now(),
        size=len(leaves),
        root=proof.root_of(contents),
        previous=last.hash if last else "",
    )
    checkpoint.hash = proof.digest(checkpoint.content())
    checkpoint.signature, checkpoint.key = signing.sign(proof.CHECKPOINT, checkpoint.content())
    checkpoint.save(force_insert=True)
    for leaf, path in zip(leaves, proof.paths_to(contents), strict=True):
        leaf.checkpoint, leaf.path = checkpoint, path
    Leaf.objects.bulk_create(leaves)
    return checkpoint
