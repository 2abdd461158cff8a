"""Keeps the audit log's files: in the artifact store, or where LORAYARD_AUDIT_STORE_URL says. Knows no format."""

import contextlib
import uuid
from typing import Any

import fsspec
from django.conf import settings


def write(path: str, content: bytes) -> None:
    """The file is there whole, or not at all. Raises OSError."""
    fs, root = _place()
    final, draft = f"{root}/{path}", f"{root}/incoming/{uuid.uuid4().hex}"
    for folder in (final, draft):
        fs.makedirs(folder.rpartition("/")[0], exist_ok=True)
    try:
        with fs.open(draft, "wb") as file:
            file.write(content)
        fs.mv(draft, final)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(draft)
        raise


def read(path: str) -> bytes:
    """Raises FileNotFoundError, or another OSError when the store can't be reached."""
    fs, root = _place()
    with fs.open(f"{root}/{path}", "rb") as file:
        return bytes(file.read())


def names(folder: str) -> list[str]:
    """Paths of the files in it."""
    fs, root = _place()
    with contextlib.suppress(FileNotFoundError):
        return [f"{folder}/{path.rpartition('/')[2]}" for path in fs.ls(f"{root}/{folder}", detail=False)]
    return []


def remove(path: str) -> None:
    fs, root = _place()
    fs.rm_file(f"{root}/{path}")


def _place() -> tuple[Any, str]:
    fs, root = fsspec.core.url_to_fs(settings.LORAYARD.audit_store_url, use_listings_cache=False)
    return fs, root.rstrip("/")
