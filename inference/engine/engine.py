"""Knows the loop and its thread: who may talk to the scheduler, and when. The loop is one sentence:

plan = scheduler.plan(); output = runner.run(plan); scheduler.commit(plan, output)
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from inference.engine.scheduler import Event, Plan, Sampled, Scheduler
from inference.engine.sequence import Sequence
from inference.errors import EngineDown, Internal

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 0.05  # seconds between looks at a queue that can't move yet


class Runs(Protocol):
    def run(self, plan: Plan) -> list[Sampled | None]: ...


class Engine:
    """One thread that owns the scheduler, the pools and the model. Other threads only leave notes.

    `deliver` is called on that thread with the events of a step; it must not block.
    """

    def __init__(
        self, scheduler: Scheduler, runner: Runs, deliver: Callable[[list[Event]], None], *, check: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.steps = 0
        self.step_seconds = 0.0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.failed_steps = 0
        self.steps_by_adapters: Counter[int] = Counter()
        self.steps_by_rows: Counter[int] = Counter()
        self.last_forward = float("-inf")  # time.monotonic() of the last good one
        self._runner = runner
        self._deliver = deliver
        self._check = check
        self._notes: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the step under way; what still runs or waits fails."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        self._wake.set()

    def submit(self, sequence: Sequence) -> None:
        """Queue a request that `scheduler.admissible` let pass; its events follow, the last of them an Ended."""
        self._note(lambda: self.scheduler.add(sequence))

    def cancel(self, sequence: Sequence) -> None:
        """Forget a request before the next step; no event follows. Nothing happens if it has ended."""
        self._note(lambda: self.scheduler.cancel(sequence))

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Run `question` on the engine's thread, between two steps."""
        future: Future[T] = Future()

        def answer() -> None:
            try:
                future.set_result(question())
            except Exception as error:
                future.set_exception(error)

        self._note(answer)
        return future

    def _note(self, note: Callable[[], None]) -> None:
        self._notes.append(note)
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            if not self.step():
                self._wake.wait(PATIENCE if len(self.scheduler.queue) or self.scheduler.slots.loading else None)
        for sequence in list(self.scheduler.live):
            self.scheduler.fail(sequence, EngineDown("The engine is stopping."))
        self._publish()

    def step(self) -> bool:
        """What the loop repeats: take the notes, run a step, tell its events. False if there was nothing to run."""
        while self._notes:
            self._notes.popleft()()
        plan = self.scheduler.plan()
        if plan:
            started, adapters = time.monotonic(), plan.adapters  # who ends in this step lets go of its slot
            try:
                output = self._runner.run(plan)
                self.scheduler.commit(plan, output)
            except Exception:
                self._give_up(plan)
            else:
                self._account(plan, output, started, adapters)
        if self._check:
            self.scheduler.check()
        self._publish()
        return bool(plan)

    def _give_up(self, plan: Plan) -> None:
        """The model failed: this step's requests fail, the others go on."""
        log.exception("a step failed", extra={"rows": len(plan.rows)})
        self.failed_steps += 1
        for row in plan.rows:
            if row.sequence in self.scheduler.live:
                self.scheduler.fail(row.sequence, Internal("The engine failed while it computed this request."))

    def _account(self, plan: Plan, output: list[Sampled | None], started: float, adapters: int) -> None:
        generated = sum(sampled is not None for sampled in output)
        self.last_forward = time.monotonic()
        self.steps += 1
        self.step_seconds += self.last_forward - started
        self.generated_tokens += generated
        self.prompt_tokens += sum(row.prompt_tokens for row in plan.rows)
        self.steps_by_adapters[adapters] += 1
        self.steps_by_rows[len(plan.rows)] += 1

    def _publish(self) -> None:
        events = self.scheduler.take_events()
        if events:
            self._deliver(events)
