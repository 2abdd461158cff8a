"""Finds segments' files that no row knows: what a process left that died before it was done, or the last that is left.

Whoever owns the database can delete a segment's row. Its file then is the only copy of its events, under our signature
(its proof leads to a checkpoint that we signed): such evidence is kept, and told of.
"""

from django.conf import settings

from audit import archive, exports, proof, signing
from audit.models import Chain


def folder_of(chain: Chain) -> str:
    return f"segments/{chain.pk}"


def number_in(path: str) -> int:
    """Of the first event in the segment at this path."""
    digits = path.rpartition("/")[2].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0


def strays(chain: Chain) -> list[str]:
    """Paths of the chain's files without a row."""
    known = {segment.path for segment in chain.segments.all()}
    return sorted(set(archive.names(folder_of(chain))) - known)


def evidence(chain: Chain) -> list[str]:
    """Those of them that we signed and that hold an event which is nowhere else any more."""
    return [path for path in strays(chain) if _is_evidence(chain, path)]


def _is_evidence(chain: Chain, path: str) -> bool:
    lines = archive.read(path).decode("utf-8", "replace").splitlines(keepends=True)
    keys = [signing.public_key(), *settings.LORAYARD.audit_former]
    reports = [proof.verify(lines, key) for key in keys]
    signed = next((report for report in reports if report.signed and report.chain == str(chain.pk)), None)
    return signed is not None and not _elsewhere(chain, signed.first, signed.number, lines)


def _elsewhere(chain: Chain, first: int, last: int, lines: list[str]) -> bool:
    """Whether the rows, and the segments that have one, still say all that these lines say."""
    try:
        return {line for line in lines if '"kind":"event"' in line} <= set(exports.event_lines(chain, first, last))
    except FileNotFoundError:
        return False
