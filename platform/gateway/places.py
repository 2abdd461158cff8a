"""Knows how much one key and one tenant hold open in this process; nothing of what they do with it.

A place is taken once the key is known, and given back when the last byte is out or the client has gone. So one key can
hold no more of the process than its share, by however many connections, streams or WebSockets. A large body takes
another place until it is parsed: there are few of these, since each may weigh as much as a thousand open streams.
"""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from django.conf import settings

from gateway.authentication import Caller
from gateway.errors import TooManyLarge, TooManyOpen

LARGE_PER_KEY = 32
LARGE_PER_TENANT = 64

_open: Counter[Hashable] = Counter()
_large: Counter[Hashable] = Counter()


@dataclass
class Place:
    """What one request or WebSocket takes, once its caller is known. Leaving the block gives it back."""

    _held: list[Hashable] = field(default_factory=list)
    _held_large: list[Hashable] = field(default_factory=list)

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

    def take_large(self, caller: Caller) -> None:
        """Raises TooManyLarge. Taken again, it changes nothing."""
        if self._held_large:
            return
        holders: tuple[tuple[str, Hashable, int], ...] = (
            ("key", caller.key, LARGE_PER_KEY),
            ("tenant", caller.tenant.pk, LARGE_PER_TENANT),
        )
        for whose, holder, limit in holders:
            if _large[holder] >= limit:
                raise TooManyLarge(whose, limit)
        self._held_large = [holder for _, holder, _ in holders]
        _large.update(self._held_large)

    def leave_large(self) -> None:
        _give_back(_large, self._held_large)
        self._held_large = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.leave_large()
        _give_back(_open, self._held)
        self._held = []


def _give_back(count: Counter[Hashable], holders: list[Hashable]) -> None:
    for holder in holders:
        count[holder] -= 1
        if not count[holder]:
            del count[holder]
