"""The audit log's format, and a verifier of exports that needs this file, Python and `cryptography`, nothing else.

    python proof.py --key <base64 public key> export.jsonl [next-page.jsonl …]

An export is JSON Lines:

    {"kind": "header", "format": "lorayard-audit/1", "chain", "first", "last", "next"}
    {"kind": "event", "event": {…}, "hash"}                    one per event, in order
    {"kind": "proof", "checkpoint": {…}, "key", "signature", "leaf": {…}, "path": [[side, hash], …]}

hash       sha256 over the event's canonical JSON; the event's `previous` is the hash of the one before.
canonical  JSON with sorted keys, no spaces, ASCII only. Fractions are text; times are microseconds since 1970.
leaf       a chain's length and head when the checkpoint was taken.
path       from the leaf to the checkpoint's `root`, as RFC 6962 builds trees: sha256(0 || leaf), sha256(1 || l || r).
signature  Ed25519 over `CHECKPOINT` and the checkpoint's canonical JSON; `previous` is sha256 of the one before.

Knows no database and no Django; the platform writes and verifies with these same functions.
"""

import argparse
import base64
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMAT = "lorayard-audit/1"
CHECKPOINT = b"lorayard audit checkpoint 1\n"
SEGMENT = b"lorayard audit segment 1\n"

Json = dict[str, Any]


def canonical(content: Json) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def digest(content: Json) -> str:
    return hashlib.sha256(canonical(content)).hexdigest()


def leaf_of(chain: str, length: int, head: str) -> Json:
    return {"chain": chain, "length": length, "head": head}


def root_of(leaves: Sequence[Json]) -> str:
    """The Merkle tree's root over the leaves, which must be one at least."""
    return _root([_leaf_hash(leaf) for leaf in leaves]).hex()


def paths_to(leaves: Sequence[Json]) -> list[list[list[str]]]:
    """For each leaf, what to join its hash with, from the bottom up: `["left" | "right", hash]`."""
    return [[[side, other.hex()] for side, other in path] for path in _paths([_leaf_hash(leaf) for leaf in leaves])]


def root_from(leaf: Json, path: Iterable[Sequence[str]]) -> str:
    """The root that the leaf and its path lead to."""
    node = _leaf_hash(leaf)
    for side, other in path:
        pair = (bytes.fromhex(other), node) if side == "left" else (node, bytes.fromhex(other))
        node = hashlib.sha256(b"\1" + b"".join(pair)).digest()
    return node.hex()


def is_signed(purpose: bytes, content: Json, signature: str, key: str) -> bool:
    """Whether the signature (base64) is this key's (base64) over the content."""
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
        public.verify(base64.b64decode(signature, validate=True), purpose + canonical(content))
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass
class Report:
    """What was read so far: of which chain, up to which event, and how far a signature covers it."""

    chain: str = ""
    number: int = 0
    first: int = 0
    head: str = ""
    signed: int = 0
    faults: list[str] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)

    def blame(self, message: str) -> None:
        self.faults.append(message)


def verify(lines: Iterable[str], key: str, report: Report | None = None) -> Report:
    """Read one export, or the page that follows those which `report` knows. Nothing in it is believed."""
    report = report or Report()
    last: int | None = None
    for line in lines:
        try:
            item = json.loads(line)
            match item["kind"]:
                case "header":
                    last = _header(item, report)
                case "event":
                    _event(item["event"], item["hash"], report)
                case "proof":
                    _proof(item, key, report)
                case kind:
                    report.blame(f"a line of the unknown kind {kind!r}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            report.blame(f"a line that can't be read: {type(error).__name__}: {error}")
    if last is None:
        report.blame("there is no header")
    elif last != report.number:
        report.blame(f"the events end at {report.number}, not at {last}: lines are missing")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify exports of the Lorayard audit log, offline.")
    parser.add_argument("--key", required=True, help="the platform's public key, learnt by another way than the file")
    parser.add_argument("files", nargs="+", type=Path, help="one export, or its pages in order")
    options = parser.parse_args(arguments)
    report = Report()
    for path in options.files:
        with path.open(encoding="utf-8") as lines:
            verify(lines, options.key, report)
    if not report.signed:
        report.blame("no signed checkpoint covers these events")
    for fault in report.faults:
        print(f"FAULT: {fault}", file=sys.stderr)
    if report.faults:
        return 1
    print(f"chain {report.chain}: events {report.first} to {report.number} are as they were written")
    unsigned = report.number - report.signed
    print(f"signed up to event {report.signed}" + (f"; the last {unsigned} are newer" if unsigned else ""))
    return 0


def _header(item: Json, report: Report) -> int:
    if item["format"] != FORMAT:
        raise ValueError(f"the format is {item['format']!r}")
    if not report.chain:
        report.chain, report.first, report.number = item["chain"], item["first"], item["first"] - 1
    elif (item["chain"], item["first"]) != (report.chain, report.number + 1):
        report.blame(f"this page does not follow event {report.number} of {report.chain}")
    return int(item["last"])


def _event(event: Json, claimed: str, report: Report) -> None:
    if event["chain"] != report.chain or event["number"] != report.number + 1:
        report.blame(f"event {event['number']} of {event['chain']} stands where {report.number + 1} should")
    if report.number >= report.first and event["previous"] != report.head:
        report.blame(f"event {event['number']} does not follow the one before it")
    if event["number"] == 1 and event["previous"] != "":
        report.blame("the first event claims one before it")
    if digest(event) != claimed:
        report.blame(f"event {event['number']} was edited: its content does not give its hash")
    report.number, report.head = event["number"], claimed
    report.hashes[report.number] = claimed


def _proof(item: Json, key: str, report: Report) -> None:
    checkpoint, leaf = item["checkpoint"], item["leaf"]
    if leaf["chain"] != report.chain or report.hashes.get(leaf["length"]) != leaf["head"]:
        report.blame(f"the signed head is not that of event {leaf['length']}: the log was rewritten")
    elif root_from(leaf, item["path"]) != checkpoint["root"]:
        report.blame(f"checkpoint {checkpoint['number']} does not hold this chain's head")
    elif not is_signed(CHECKPOINT, checkpoint, item["signature"], key):
        report.blame(f"checkpoint {checkpoint['number']} is not signed by this key")
    else:
        report.signed = max(report.signed, leaf["length"])


def _leaf_hash(leaf: Json) -> bytes:
    return hashlib.sha256(b"\0" + canonical(leaf)).digest()


def _split(count: int) -> int:
    """The largest power of two below the count."""
    return 1 << (count - 1).bit_length() - 1


def _root(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    middle = _split(len(hashes))
    return hashlib.sha256(b"\1" + _root(hashes[:middle]) + _root(hashes[middle:])).digest()


def _paths(hashes: Sequence[bytes]) -> list[list[tuple[str, bytes]]]:
    if len(hashes) == 1:
        return [[]]
    left, right = hashes[: _split(len(hashes))], hashes[_split(len(hashes)) :]
    beside_left, beside_right = ("right", _root(right)), ("left", _root(left))
    return [[*path, beside_left] for path in _paths(left)] + [[*path, beside_right] for path in _paths(right)]


if __name__ == "__main__":
    sys.exit(main())
