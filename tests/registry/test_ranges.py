"""A file of any size is streamed a chunk at a time, as a server of its own event loop reads it."""

from pathlib import Path
from typing import Any

from registry.ranges import CHUNK, serve


async def test_a_large_range_comes_in_chunks_and_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    content = bytes(range(256)) * (3 * CHUNK // 256)
    path.write_bytes(content)
    answer: Any = serve(path, len(content), '"x"', f"bytes=100-{2 * CHUNK + 99}", "")
    assert answer.headers["Content-Length"] == str(2 * CHUNK)
    pieces = [piece async for piece in answer.streaming_content]
    assert [len(piece) for piece in pieces] == [CHUNK, CHUNK]
    assert b"".join(pieces) == content[100 : 2 * CHUNK + 100]


def test_nothing_of_an_empty_file_is_a_range(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    assert serve(path, 0, '"x"', "bytes=0-1", "").status_code == 416
    assert serve(path, 0, '"x"', "", "").status_code == 200
