"""beat's schedule, which a clock that is set back does not stop; knows no task.

A last run that lies in the future is taken for one of just now, when the schedule is read from its file and at every
look at it; and the order of what comes next is made anew, since it was made by the clock's former time.
"""

import logging
import time
from datetime import timedelta
from typing import Any

from celery.beat import PersistentScheduler, ScheduleEntry
from celery.utils.time import maybe_make_aware

log = logging.getLogger(__name__)

LEAP = 1.0  # seconds that the clock must have gone back by to be called set back
AHEAD = timedelta(seconds=LEAP)


class Scheduler(PersistentScheduler):  # type: ignore[misc]
    """Celery's, which believes no time that is still to come."""

    _offset: float | None = None  # of the wall's clock from the monotonic one

    def setup_schedule(self) -> None:
        super().setup_schedule()
        self._disbelieve()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        offset = time.time() - time.monotonic()
        if self._offset is not None and offset < self._offset - LEAP:
            log.warning("the clock was set back by %.0f s", self._offset - offset)
            self._disbelieve()
        self._offset = offset
        return super().tick(*args, **kwargs)

    def _disbelieve(self) -> None:
        """Last runs in the future were now."""
        for entry in self.schedule.values():
            self._correct(entry)
        self._heap = None

    @staticmethod
    def _correct(entry: ScheduleEntry) -> None:
        now = maybe_make_aware(entry.default_now())
        if maybe_make_aware(entry.last_run_at) > now + AHEAD:
            entry.last_run_at = now
