"""Knows who asked for an adapter before any sequence does, and tells them; never slots."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from inference.errors import EngineError


@dataclass(frozen=True, eq=False)
class Preload:
    answer: Future[None]
    pin: bool


class Preloads:
    """By digest. Who goes away cancels the answer."""

    def __init__(self) -> None:
        self._asked: dict[str, list[Preload]] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._asked

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._asked))

    def ask(self, digest: str, *, pin: bool) -> Future[None]:
        preload = Preload(Future(), pin)
        self._asked.setdefault(digest, []).append(preload)
        return preload.answer

    def miss(self, digest: str) -> bool:
        """Forget who went away; whether nobody is left of those who asked for a pin."""
        asked = self._asked.pop(digest)
        if left := [preload for preload in asked if not preload.answer.cancelled()]:
            self._asked[digest] = left
        return _pinned(asked) and not _pinned(left)

    def tell(self, digest: str, error: EngineError | None = None) -> bool:
        """Answer all; whether nobody was left of those who asked for a pin."""
        asked = self._asked.pop(digest, [])
        told = [preload for preload in asked if preload.answer.set_running_or_notify_cancel()]
        for preload in told:
            preload.answer.set_result(None) if error is None else preload.answer.set_exception(error)
        return _pinned(asked) and not _pinned(told)


def _pinned(preloads: list[Preload]) -> bool:
    return any(preload.pin for preload in preloads)
