"""Writes events as JSON Lines, with the proof that nothing was changed since (`audit.proof`)."""

import json
from collections.abc import Iterator

from audit import archive, checkpoints, proof
from audit.models import Chain, Event, Segment

PAGE = 10_000


def page(chain: Chain, after: int = 0, limit: int = PAGE) -> Iterator[str]:
    """The header, up to `limit` events behind number `after`, and the newest proof that speaks of one of them."""
    last = min(after + limit, chain.length)
    yield from _lines(chain, after + 1, last)


def everything(chain: Chain) -> Iterator[str]:
    yield from _lines(chain, 1, chain.length)


def sealed(chain: Chain, first: int, last: int) -> bytes:
    """What a segment's file holds."""
    return "".join(_lines(chain, first, last)).encode()


def event_lines(chain: Chain, first: int, last: int) -> Iterator[str]:
    """The events of a range: from segments first, since what they hold is no longer in the table."""
    for segment in chain.segments.filter(first__lte=last, last__gte=first).order_by("first"):
        for line in _of_segment(segment):
            if first <= json.loads(line)["event"]["number"] <= last:
                yield line
    events = Event.objects.filter(chain=chain, number__range=(first, last)).order_by("number")
    for event in events.iterator(chunk_size=1000):
        yield _line({"kind": "event", "event": event.content(), "hash": event.hash})


def _lines(chain: Chain, first: int, last: int) -> Iterator[str]:
    following = last if last < chain.length else None
    header = {"kind": "header", "format": proof.FORMAT, "chain": str(chain.pk)}
    yield _line({**header, "first": first, "last": max(last, first - 1), "next": following})
    yield from event_lines(chain, first, last)
    leaf = checkpoints.newest_leaf(chain, last)
    if leaf is not None and leaf.length >= first:
        yield _line(checkpoints.proof_of(leaf))


def _of_segment(segment: Segment) -> Iterator[str]:
    for line in archive.read(segment.path).decode().splitlines(keepends=True):
        if '"kind":"event"' in line:
            yield line


def _line(item: proof.Json) -> str:
    return json.dumps(item, sort_keys=True, separators=(",", ":")) + "\n"
