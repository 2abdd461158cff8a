"""Knows the loop and its thread: who may talk to the scheduler, and when. The loop is one sentence:

plan = scheduler.plan(); output = runner.run(plan); scheduler.commit(plan, output)
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from inference.engine.scheduler import Ended, Event, Plan, Sampled, Scheduler
from inference.engine.sequence import Sequence
from inference.errors import EngineDown, EngineError, Internal, StepFailed

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 0.05  # seconds between looks at a queue that can't move yet


class Runs(Protocol):
    def run(self, plan: Plan) -> list[Sampled | None]: ...


@dataclass(frozen=True)
class Note:
    """What another thread wants done between two steps, and what tells it that no more steps will come."""

    do: Callable[[], None]
    refuse: Callable[[EngineError], None] = lambda _: None


class Engine:
    """One thread that owns the scheduler, the pools and the model. Other threads only leave notes.

    `deliver` is called with the events of a step, on that thread until it ends; it must not block. `ended` is done when
    the thread is: with what broke it, or None after `stop`. Whoever is or comes too late is told that it failed.
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
        self.ended: Future[None] = Future()
        self._notes: deque[Note] = deque()
        self._refusal: EngineError | None = None  # of every note from now on
        self._lock = threading.Lock()  # a note is taken in before the refusal or refused by it
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
        self._leave(
            Note(
                lambda: self.scheduler.add(sequence),
                lambda error: self._deliver([Ended(sequence, "failed", error)]),
            )
        )

    def cancel(self, sequence: Sequence) -> None:
        """Forget a request before the next step; no event follows. Nothing happens if it has ended."""
        self._leave(Note(lambda: self.scheduler.cancel(sequence)))

    def read(self, sequence: Sequence, tokens: int) -> None:
        """A request's reader took so many more of its tokens."""
        self._leave(Note(lambda: self.scheduler.read(sequence, tokens)))

    def ask(self, question: Callable[[], T]) -> Future[T]:
        """Run `question` on the engine's thread, between two steps, unless the future was cancelled by then."""
        future: Future[T] = Future()

        def answer() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(question())
                except Exception as error:
                    future.set_exception(error)

        def refuse(error: EngineError) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self._leave(Note(answer, refuse))
        return future

    def _leave(self, note: Note) -> None:
        with self._lock:
            refusal = self._refusal
            if refusal is None:
                self._notes.append(note)
        if refusal is None:
            self._wake.set()
        else:
            note.refuse(refusal)

    def _run(self) -> None:
        try:
            while not self._stopping:
                if not self.step():
                    self._wake.wait(self._pause())
                self._wake.clear()  # who woke the loop did it for what it looks at now: `_stopping` and the notes
        except Exception as error:
            log.exception("the engine broke outside of the model; nothing it holds can be relied on any more")
            self._close(Internal("The engine broke."))
            self.ended.set_exception(error)
        else:
            self._close(EngineDown("The engine is stopping."))
            self.ended.set_result(None)

    def _pause(self) -> float | None:
        """None where nothing happens unless a note asks for it."""
        scheduler = self.scheduler
        return PATIENCE if len(scheduler.queue) or scheduler.slots.loading or scheduler.held else None

    def _close(self, error: EngineError) -> None:
        """Fail whatever lives and whatever comes, without a look at pools that may be broken."""
        with self._lock:
            self._refusal = error
        self.scheduler.events += [Ended(sequence, "failed", error) for sequence in self.scheduler.live]
        with suppress(Exception):  # it may be `deliver` that broke
            self._publish()
        for note in self._notes:
            with suppress(Exception):
                note.refuse(error)

    def step(self) -> bool:
        """What the loop repeats: take the notes, run a step, tell its events. False if there was nothing to run."""
        while self._notes:
            self._notes.popleft().do()
        plan = self.scheduler.plan()
        if plan:
            started, adapters = time.monotonic(), plan.adapters  # who ends in this step lets go of its slot
            try:
                output = self._runner.run(plan)
            except Exception:
                self._give_up(plan)
            else:
                self.scheduler.commit(plan, output)
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
                self.scheduler.fail(row.sequence, StepFailed("The engine failed while it computed this request."))

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
        if self.scheduler.events:
            self._deliver(self.scheduler.events)
            self.scheduler.take_events()  # not before: what could not be told is told when the engine closes
