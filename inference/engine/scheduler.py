"""Knows which sequences run next, on which blocks and slots; never tensors, text or tenants' names.

`plan` says what one step computes, `commit` takes the step's tokens in. Every request ends in exactly one of finished,
cancelled and failed, and gives back what it held.
"""

import heapq
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial

from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.fairness import OUTPUT_COST, FairQueue
from inference.engine.sequence import BASE, Sequence
from inference.engine.yielding import QUANTUM, TURN, Yielding, least_turn
from inference.errors import EngineBusy, EngineError, InvalidRequest, NonFinite, NotRead, PromptTooLong
from inference.lora.slots import SlotPool

UNREAD = 600.0  # seconds for which a reader may stand still


@dataclass(frozen=True)
class Limits:
    """batch_tokens and rows bound one step, waiting and waiting_per_share the queue; a share's held ones count there.

    batch_tokens are tokens of the base; those of an adapter cost more (`cost.token_cost`). quantum: by how much service
    for each row a share is ahead before it gives way to another (`yielding`); infinite, nobody ever does.
    """

    context: int
    vocabulary: int
    rows: int = 64
    batch_tokens: int = 512
    waiting: int = 4096
    waiting_per_share: int = 1024
    quantum: float = QUANTUM


@dataclass(frozen=True)
class Row:
    """`count` tokens of a sequence, from its `start`-th on; if they reach its end, the next one is sampled."""

    sequence: Sequence
    start: int
    count: int

    @property
    def prompt_tokens(self) -> int:
        return max(0, min(self.start + self.count, len(self.sequence.prompt)) - self.start)

    @property
    def samples(self) -> bool:
        return self.start + self.count == len(self.sequence.tokens)


@dataclass(frozen=True)
class Plan:
    """Rows sorted by slot, so that an adapter's tokens lie together; rows without adapter come first."""

    rows: tuple[Row, ...]

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def adapters(self) -> int:
        return len({row.sequence.slot for row in self.rows} - {BASE})


@dataclass
class Step:
    """A plan in the making: the rows so far, and what is left of the budget.

    cold: the adapters that were not there, each with the share that asked for it: its others need not ask again.
    """

    budget: float
    rows: dict[Sequence, Row] = field(default_factory=dict)
    lent: float = 0.0
    cold: set[tuple[str, str]] = field(default_factory=set)

    def add(self, row: Row, cost: float) -> None:
        self.rows[row.sequence] = row
        self.budget -= cost

    def drop(self, sequence: Sequence, cost: float) -> None:
        """cost: of each of its tokens."""
        row = self.rows.pop(sequence, None)
        if row is not None:
            paid = min(self.lent, row.count * cost)
            self.lent -= paid
            self.budget += row.count * cost - paid

    def lend(self) -> None:
        """Whatever decoding costs, prefill goes on: a token's cost at least is there for it."""
        self.lent = max(0.0, 1.0 - self.budget)
        self.budget += self.lent


@dataclass(frozen=True)
class Logprobs:
    """token ids and natural logarithms of their probability: the chosen one, and the best ones."""

    chosen: tuple[int, float]
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Sampled:
    """What the runner drew for a row. `finite` is False if the model's logits were not all numbers."""

    token: int
    logprobs: Logprobs | None = None
    finite: bool = True


@dataclass(frozen=True)
class Begun:
    sequence: Sequence


@dataclass(frozen=True)
class Token:
    sequence: Sequence
    token: int
    logprobs: Logprobs | None


@dataclass(frozen=True)
class Ended:
    """reason: "stop", "length" or, with an error, "failed"."""

    sequence: Sequence
    reason: str
    error: EngineError | None = None


Event = Begun | Token | Ended


class Scheduler:
    """`stops`: the token ids that end an answer."""

    def __init__(
        self,
        limits: Limits,
        blocks: BlockPool,
        slots: SlotPool,
        stops: frozenset[int] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.slots = slots
        self.queue = FairQueue()
        self.running: list[Sequence] = []
        self.held: dict[Sequence, float] = {}  # too far ahead of their readers since when; they neither run nor wait
        self.live: set[Sequence] = set()  # waiting, running or held
        self.events: list[Event] = []
        self.yielding = Yielding(self.queue, self.running, limits.rows * limits.quantum)
        self.preemptions = 0
        self.yields = 0  # those of the preemptions that made way for a share that had less
        self._held_of: Counter[str] = Counter()  # by share
        self._deadlines: list[tuple[float, int, Sequence]] = []  # a heap, of those that may not wait for ever
        self._stops = stops
        self._clock = clock

    @property
    def context(self) -> int:
        """Tokens that one sequence can have: the model's limit, or what the block pool holds."""
        return min(self.limits.context, self.blocks.total * self.blocks.size)

    def admissible(self, prompt: Seq[int], sampling: Sampling) -> None:
        """Raise what makes a request impossible. Reads only what never changes, so any thread may ask."""
        if not prompt:
            raise InvalidRequest("The prompt is empty; it needs at least one token.", param="prompt")
        if max(prompt) >= self.limits.vocabulary or min(prompt) < 0:
            raise InvalidRequest(f"Token ids lie between 0 and {self.limits.vocabulary - 1}.", param="prompt")
        if sampling.forced and max(sampling.forced) >= self.limits.vocabulary:
            raise InvalidRequest(f"Token ids lie between 0 and {self.limits.vocabulary - 1}.", param="forced")
        if max(sampling.stop_token_ids, default=0) >= self.limits.vocabulary:
            message = f"'stop_token_ids' lie between 0 and {self.limits.vocabulary - 1}."
            raise InvalidRequest(message, param="stop_token_ids")
        if sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens must be at least 1.", param="max_tokens")
        if len(prompt) + sampling.max_tokens > self.context:
            raise PromptTooLong(self.context, len(prompt) + sampling.max_tokens)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence, or fail it at once if the queue is full."""
        own = frozenset() if sequence.sampling.ignore_eos else self._stops
        sequence.ends = own | frozenset(sequence.sampling.stop_token_ids)
        full = len(self.queue) >= self.limits.waiting
        of_share = self.queue.waiting_of(sequence.share) + self._held_of[sequence.share]
        if full or of_share >= self.limits.waiting_per_share:
            self.events.append(Ended(sequence, "failed", EngineBusy()))
        else:
            self.live.add(sequence)
            self.queue.join(sequence)
            if sequence.start_by < math.inf:
                heapq.heappush(self._deadlines, (sequence.start_by, sequence.id, sequence))

    def cancel(self, sequence: Sequence) -> None:
        """The client went away: no event, since nobody listens. Nothing happens if the sequence has ended."""
        if sequence in self.live:
            self._leave(sequence)

    def stop(self, sequence: Sequence) -> int:
        """The client wants no more: as `cancel`, and how many tokens were generated for it until now."""
        self.cancel(sequence)
        return sequence.generated

    def read(self, sequence: Sequence, tokens: int) -> None:
        """Its reader took so many more; if it was held it waits for its turn again."""
        sequence.read += tokens
        if sequence in self.held and sequence.ahead <= sequence.window / 2:
            self._let_go_on(sequence)
            self.queue.push(sequence)

    def fail(self, sequence: Sequence, error: EngineError) -> None:
        self._end(sequence, "failed", error)

    def plan(self) -> Plan:
        """One step: a token of every decoding sequence, then prefill and newcomers in fair order."""
        self._fail_unloadable()
        self._fail_late()
        self._fail_unread()
        self.yielding.forget()
        step = Step(float(self.limits.batch_tokens))
        self._go_on([sequence for sequence in self.running if sequence.remaining == 1], step)
        step.lend()
        served, passed = self.queue.served, set[str]()
        prefills = sorted((s for s in self.running if s.remaining > 1), key=lambda s: served(s.share), reverse=True)
        for newcomer in self.queue.in_order(passed):
            while prefills and not self.yielding.outranks(newcomer, prefills[-1]):
                self._go_on([prefills.pop()], step)
            if step.budget <= 0 or not self._invite(newcomer, step, passed):
                break
        self._go_on(reversed(prefills), step)
        return Plan(tuple(sorted(step.rows.values(), key=lambda row: row.sequence.slot)))

    def commit(self, plan: Plan, output: Seq[Sampled | None]) -> None:
        """Take in a step's tokens: `output` has one entry a row, None where the row does not sample."""
        for row, sampled in zip(plan.rows, output, strict=True):
            sequence = row.sequence
            sequence.computed = row.start + row.count
            if sampled is not None and not sampled.finite:
                self.blocks.forget(sequence.blocks)  # of its prefill's earlier steps nothing was sampled
                self.fail(sequence, NonFinite("The model's output for this request was not a number."))
                continue
            self._seal(sequence, row.start)
            if sampled is not None:
                self._append(sequence, sampled)

    def take_events(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def check(self) -> None:
        """Assert the laws: blocks, slots, and that running sequences hold exactly what is leased and pinned."""
        self.blocks.check()
        self.slots.check()
        assert len(self.running) + len(self.queue) + len(self.held) == len(self.live)
        assert self._held_of == Counter(sequence.share for sequence in self.held)
        held = {block for sequence in self.running for block in sequence.blocks}
        assert len(held) == self.blocks.leased
        pins = Counter(sequence.slot for sequence in self.running if sequence.slot != BASE)
        assert pins == Counter({slot.index: slot.pins for slot in self.slots.slots if slot.pins})

    def _fail_unloadable(self) -> None:
        for digest, error in self.slots.poll(self._left_on):
            for sequence in [s for s in self.queue.in_order() if s.digest == digest]:
                self.fail(sequence, error)

    def _fail_late(self) -> None:
        now = self._clock()
        while self._deadlines and self._deadlines[0][0] < now:
            sequence = heapq.heappop(self._deadlines)[2]
            if sequence in self.live and not sequence.begun:
                self.fail(sequence, EngineBusy("The request waited for its turn as long as it may."))

    def _fail_unread(self) -> None:
        """Those that are held come in the order in which they began to be."""
        overdue = self._clock() - UNREAD
        while self.held and self.held[sequence := next(iter(self.held))] <= overdue:
            self.fail(sequence, NotRead(f"The answer was not read on for {UNREAD / 60:.0f} minutes."))

    def _go_on(self, sequences: Iterable[Sequence], step: Step) -> None:
        for sequence in sequences:
            if step.budget <= 0 and sequence.remaining > 1:
                break
            if sequence in self.running:  # an earlier row's need may have preempted it
                self._extend(sequence, step)

    def _invite(self, newcomer: Sequence, step: Step, passed: set[str]) -> bool:
        """Admit who waits, if there is a row and room or if others give way. False ends the step's admissions.

        Where nobody gives way to it for a row, its share is `passed`; where memory is short, nobody overtakes it, but
        for one that has no title to what others hold.
        """
        adapter = (newcomer.digest, newcomer.share)
        if adapter in step.cold:
            newcomer.cold |= not newcomer.begun
            return True
        full = len(self.running) >= self.limits.rows
        if full and next(self.yielding.to(newcomer), None) is None:
            passed.add(newcomer.share)
            return self.yielding.outranks_any(newcomer)
        if not self._seat(newcomer):
            step.cold.add(adapter)
            self._clear_slot_for(newcomer, step)
            return True
        leaving = self._way_for(newcomer)
        if leaving is None:
            self._unseat(newcomer)
            return not newcomer.entitled
        for sequence in leaving:
            self._give_way(sequence, step)
        self._extend(newcomer, step)
        self._admit(newcomer, drove=bool(leaving))
        return True

    def _way_for(self, newcomer: Sequence) -> list[Sequence] | None:
        """Who has to leave so that a newcomer has a row and room; None if those who give way are too few.

        What it takes of their memory they compute again, so it costs them no more than they are ahead.
        """
        leaving: list[Sequence] = []
        taken = 0 if self._is_room_for(newcomer, ()) else self._missing(newcomer) * self.blocks.size
        yielding = self.yielding.to(newcomer, OUTPUT_COST * taken)
        while len(self.running) - len(leaving) >= self.limits.rows or not self._is_room_for(newcomer, leaving):
            sequence = next(yielding, None)
            if sequence is None:
                return None
            leaving.append(sequence)
        return leaving

    def _is_room_for(self, newcomer: Sequence, leaving: Seq[Sequence]) -> bool:
        """Whether all of its tokens so far find blocks, and all of each that stays and one more.

        Else it would drive others out at their next token. Who begins may take the memory of those who leave; who has
        begun finds its own again or waits until there is some, so that two who are too large for one pool take no
        turns in computing everything again.
        """
        staying = self.running if newcomer.begun else [other for other in self.running if other not in leaving]
        if not staying:
            return True
        freed = 0 if newcomer.begun else self.blocks.freed_by(sequence.blocks for sequence in leaving)
        needed = self._missing(newcomer) + sum(max(1, self._missing(other)) for other in staying)
        return self.blocks.available + freed >= needed

    def _missing(self, sequence: Sequence) -> int:
        return self.blocks.blocks_for(len(sequence.tokens)) - len(sequence.blocks)

    def _clear_slot_for(self, newcomer: Sequence, step: Step) -> None:
        """If a slot is drained for a newcomer's adapter and all who run there give way to it, they do so now."""
        slot = self.slots.drained_for(newcomer.digest)
        if slot is not None:
            on_it = [sequence for sequence in self.running if sequence.slot == slot.index]
            if set(on_it) <= set(self.yielding.to(newcomer, self._price)):
                for sequence in on_it:
                    self._give_way(sequence, step)

    def _give_way(self, sequence: Sequence, step: Step) -> None:
        """To a share that had less: back to its line, with its blocks known as long as memory lasts."""
        self.running.remove(sequence)
        self._drive_out(sequence, step)
        self.yields += 1

    def _extend(self, sequence: Sequence, step: Step) -> None:
        """Give a sequence a row and the blocks for its next tokens, one at least; others may lose theirs for it."""
        cost = self._cost(sequence)
        count = min(sequence.remaining, max(1, int(step.budget / cost)))
        missing = self.blocks.blocks_for(sequence.computed + count) - len(sequence.blocks)
        while (leased := self.blocks.lease(missing)) is None:
            if not self._preempt_for(sequence, step):
                return
        sequence.blocks += leased
        step.add(Row(sequence, sequence.computed, count), count * cost)

    def _cost(self, sequence: Sequence) -> float:
        return self.slots.cost(sequence.slot) if sequence.slot != BASE else 1.0

    def _preempt_for(self, sequence: Sequence, step: Step) -> bool:
        """Take the least entitled one's blocks; False when that is `sequence` itself. The first admitted goes on."""
        assert len(self.running) > 1, "a sequence that runs alone has all blocks"
        victim = self.running.pop(max(range(1, len(self.running)), key=self.yielding.claims))
        self._drive_out(victim, step)
        return victim is not sequence

    def _drive_out(self, sequence: Sequence, step: Step) -> None:
        step.drop(sequence, self._cost(sequence))
        self._unseat(sequence)
        self.queue.push(sequence)
        self.preemptions += 1

    def _seat(self, sequence: Sequence) -> bool:
        """Pin a newcomer's slot and lease the blocks of its known prefix; False while its adapter is not resident."""
        if sequence.digest:
            slot = self.slots.pin(sequence.digest)
            if slot is None:
                sequence.cold |= not sequence.begun
                left = partial(self._left_on, waiting=sequence) if sequence.entitled else None
                self.slots.want(sequence.digest, left)
                return False
            sequence.slot = slot
        size = self.blocks.size
        known = sequence.hashes((len(sequence.tokens) - 1) // size, size)  # one token at least is computed
        sequence.blocks = self.blocks.match(known)
        sequence.computed = len(sequence.blocks) * size
        return True

    def _unseat(self, sequence: Sequence) -> None:
        """Give back what a sequence holds; its tokens stay, so that it can be computed again."""
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.computed, sequence.said = [], 0, None
        if sequence.slot != BASE:
            self.slots.unpin(sequence.slot)
            sequence.slot = BASE

    def _admit(self, sequence: Sequence, *, drove: bool) -> None:
        """drove: others gave way to it."""
        sequence.stays_until = least_turn(sequence, drove=drove)
        self.queue.admit(sequence)
        self.running.append(sequence)
        if not sequence.begun:
            sequence.begun = True
            sequence.cached = sequence.computed
            self.events.append(Begun(sequence))

    def _seal(self, sequence: Sequence, start: int) -> None:
        size = self.blocks.size
        full = sequence.computed // size
        if full > start // size:
            for index, digest in enumerate(sequence.hashes(full, size)[start // size :], start // size):
                self.blocks.seal(sequence.blocks[index], digest)

    def _append(self, sequence: Sequence, sampled: Sampled) -> None:
        sequence.tokens.append(sampled.token)
        self.queue.charge(sequence, OUTPUT_COST)
        self.events.append(Token(sequence, sampled.token, sampled.logprobs))
        if sequence.ended_by(sampled.token):
            self._end(sequence, "stop")
        elif not sequence.left:
            self._end(sequence, "length")
        elif sequence.ahead >= sequence.window:
            self._hold(sequence)

    def _hold(self, sequence: Sequence) -> None:
        """Its row, slot and blocks are others' until its reader goes on; full blocks stay known meanwhile."""
        self.running.remove(sequence)
        self._unseat(sequence)
        self.held[sequence] = self._clock()
        self._held_of[sequence.share] += 1

    def _let_go_on(self, sequence: Sequence) -> None:
        del self.held[sequence]
        self._held_of[sequence.share] -= 1
        if not self._held_of[sequence.share]:
            del self._held_of[sequence.share]

    def _end(self, sequence: Sequence, reason: str, error: EngineError | None = None) -> None:
        self._leave(sequence)
        self.events.append(Ended(sequence, reason, error))

    def _leave(self, sequence: Sequence) -> None:
        self.live.remove(sequence)
        if sequence in self.held:
            self._let_go_on(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
            self._unseat(sequence)
        self.queue.leave(sequence)
        if sequence.digest and self.slots.awaited(sequence.digest) and not self._waits(sequence.digest):
            self.slots.forget(sequence.digest)

    def _waits(self, digest: str) -> bool:
        return any(sequence.digest == digest for sequence in self.queue.in_order())

    @property
    def _price(self) -> float:
        """What the whole batch is given in two turns: the price of a slot, which is empty while its adapter comes."""
        return 2 * OUTPUT_COST * TURN * self.limits.rows

    def _left_on(self, slot: int, waiting: Sequence | None = None) -> int:
        """Tokens still to be generated on a slot before it is free, if those who can give way to `waiting` do."""
        leaving = set(self.yielding.to(waiting, self._price)) if waiting is not None else set()
        return sum(sequence.left for sequence in self.running if sequence.slot == slot and sequence not in leaving)
