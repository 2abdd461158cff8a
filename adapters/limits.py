"""Knows how large an upload may be. Every reader of untrusted bytes takes its bound from here."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True)
class Limits:
    """Bytes unless said otherwise. `ratio` bounds what an archive may unpack to, as a multiple of its own size."""

    total: int = 2 * GIB
    config: int = 1 * MIB
    header: int = 1 * MIB
    tensors: int = 16_384
    rank: int = 256
    ratio: int = 100
    members: int = 16
    alpha: float = 1e6
    patterns: int = 4_096
    pattern_length: int = 4_096
    pattern_steps: int = 4_000_000
    saved: int = 64


DEFAULT = Limits()
