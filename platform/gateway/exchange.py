"""Knows one call's identity and clock; knows nothing of what is asked or answered."""

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Self

import structlog

from gateway import metrics
from gateway.places import Place

log = structlog.get_logger(__name__)

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class Exchange:
    """One call, from its first byte in to its last byte out.

    route: the view's name, never what the client wrote. key: the id of the key that calls, once it is known.
    arm: of a rollout, that a tester asks for by header; unchecked. place: what the call holds of its key's share.
    """

    id: str
    route: str = "unknown"
    key: str = ""
    arm: str = ""
    place: Place = field(default_factory=Place)
    started: float = field(default_factory=time.perf_counter)
    _answered: bool = False

    @classmethod
    def of(cls, client_id: str | None, route: str = "unknown") -> Self:
        """The client's own id where it is fit for headers and logs, else a new one."""
        if client_id and SANE_ID.fullmatch(client_id):
            return cls(client_id, route)
        return cls(f"req_{uuid.uuid4().hex}", route)

    @property
    def milliseconds(self) -> int:
        return round(1000 * (time.perf_counter() - self.started))

    def end(self, status: int, *, complete: bool = True) -> None:
        """Call once, when the last byte is out or (complete=False) the client has gone."""
        metrics.REQUESTS.labels(self.route, str(status)).inc()
        metrics.DURATION.labels(self.route).observe(self.milliseconds / 1000)
        if not complete:
            metrics.DISCONNECTS.labels(self.route).inc()
        log.info(
            "answered" if complete else "abandoned",
            request_id=self.id,
            route=self.route,
            status=status,
            milliseconds=self.milliseconds,
            key=self.key,
        )

    def token(self) -> None:
        """Call at each token; the first one is measured."""
        if not self._answered:
            self._answered = True
            metrics.FIRST_TOKEN.labels(self.route).observe(time.perf_counter() - self.started)
