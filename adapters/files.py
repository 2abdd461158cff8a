"""Knows which files make an adapter and how an untrusted folder is opened; never what is in them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from adapters.errors import Finding, Rejected

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
EXPECTED = (CONFIG, WEIGHTS)
DROPPED = frozenset({"README.md"})
"""PEFT writes a model card beside the two files. It is taken and forgotten: neither stored nor part of the digest."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst")
CHUNK = 1 << 20


def missing(name: str) -> Finding:
    return Finding(
        "missing-file", f"{name} is missing; upload both files that PEFT's save_pretrained writes.", expected=name
    )


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises Rejected on a link or device, OSError where it can't be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise not_regular(path.name) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path.name)
    return os.fdopen(descriptor, "rb")


def not_regular(name: str) -> Rejected:
    return Rejected.because(
        "link", f"{name} isn't a plain file; upload the file itself, not a link or a device.", found=name
    )
