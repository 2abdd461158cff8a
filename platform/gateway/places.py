"""Knows how much one key and one tenant hold open in this process; nothing of what they do with it.

A place is taken once the key is known, and given back when the last byte is out or the client has gone. So one key can
hold no more of the process than its share, by however many connections, streams or WebSockets.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from django.conf import settings

from gateway.authentication import Caller
from gateway.errors import TooManyOpen

_open: Counter[Hashable] = Counter()


@dataclass
class Place:
    """What one request or WebSocket takes, once its caller is known. Leaving the block gives it back."""

    _held: list[Hashable] = field(default_factory=list)

    def take(self, caller: Caller) -> None:
        """Raises TooManyOpen. Taken again, it changes nothing."""
        if self._held:
            return
        env = settings.LORAYARD
        holders: tuple[tuple[str, Hashable, int], ...] = (
            ("key", caller.key, env.open_per_key),
            ("tenant", caller.tenant.pk, env.open_per_tenant),
        )
        for whose, holder, limit in holders:
            if _open[holder] >= limit:
                raise TooManyOpen(whose, limit)
        self._held = [holder for _, holder, _ in holders]
        _open.update(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for holder in self._held:
            _open[holder] -= 1
            if not _open[holder]:
                del _open[holder]
        self._held = []
