"""Knows HTTP's byte ranges (RFC 9110, section 14) and how a large file is streamed; never whose file it is."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase

CHUNK = 1 << 20  # bytes
SPAN = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def answer_to(request: HttpRequest, path: Path, size: int, sha256: str) -> HttpResponseBase:
    """What the request is to have of the file. Raises OSError."""
    asked, only_if = request.headers.get("Range", ""), request.headers.get("If-Range", "")
    answer = serve(path, size, f'"{sha256}"', asked, only_if)
    if request.method == "HEAD":
        return HttpResponse(status=answer.status_code, headers=dict(answer.headers))
    return answer


def serve(path: Path, size: int, etag: str, asked: str, only_if: str) -> HttpResponseBase:
    """The file, or the part that `asked` (a Range header) names; `only_if`: If-Range. Never more than CHUNK in memory.

    Several ranges at once, and what can't be read as a range, are answered with the whole file. Raises OSError.
    """
    span = (0, size) if only_if and only_if != etag else _span(asked, size)
    if span is None:
        answer: HttpResponseBase = HttpResponse(status=416)
        answer.headers["Content-Range"] = f"bytes */{size}"
        return answer
    start, end = span
    partial = end - start < size
    answer = StreamingHttpResponse(_pieces(path, start, end), status=206 if partial else 200)
    answer.headers["Content-Type"] = "application/octet-stream"
    answer.headers["Content-Length"] = str(end - start)
    answer.headers["Content-Disposition"] = f'attachment; filename="{path.name}"'
    answer.headers["Cache-Control"] = "private, no-store"
    answer.headers["Accept-Ranges"] = "bytes"
    answer.headers["ETag"] = etag
    if partial:
        answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return answer


def _span(asked: str, size: int) -> tuple[int, int] | None:
    """Start and end of what is asked for, all of it without a plain range; None where there is nothing of it."""
    match = SPAN.fullmatch(asked.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return 0, size
    first, last = match.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) and size else None
    start, end = int(first), min(size, int(last) + 1 if last else size)
    if last and int(last) < start:
        return 0, size
    return (start, end) if start < size else None


async def _pieces(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    """Read in threads, so that a slow disk holds up nobody else."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        await asyncio.to_thread(file.seek, start)
        while start < end and (piece := await asyncio.to_thread(file.read, min(CHUNK, end - start))):
            start += len(piece)
            yield piece
    finally:
        file.close()
