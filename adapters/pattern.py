"""Knows how to match a regular expression that someone else wrote, in bounded time; nothing of adapters.

Python's `re` backtracks: a hostile pattern hangs it, with the interpreter's lock held. Here the pattern, parsed by `re`
itself, becomes a graph of states and all of its live states advance together, so that time is linear in the text.
Without back references the answer is exactly `re`'s; patterns that need those are refused.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

_parser: Final[Any] = importlib.import_module("re._parser")
_op: Final[Any] = importlib.import_module("re._constants")

MAX_STATES: Final = 4_000
_EVERY: Final = _op.MAXREPEAT


class PatternError(ValueError):
    """Not a pattern, or one that isn't taken."""


class TooCostly(PatternError):
    """The budget is spent."""


@dataclass
class Budget:
    """Steps that are left, for building patterns and for matching: about five in a microsecond."""

    steps: int

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TooCostly("its patterns take too long to match")


Test = Callable[[str], bool]
Assertion = Callable[[str, int], bool]


@dataclass(frozen=True, slots=True)
class _Char:
    test: Test
    then: int


@dataclass(frozen=True, slots=True)
class _Fork:
    """Goes on at each of `targets` without reading. A list, since a loop adds its body later."""

    targets: list[int]


@dataclass(frozen=True, slots=True)
class _At:
    holds: Assertion
    then: int


@dataclass(frozen=True, slots=True)
class _Look:
    """Goes on if the graph at `start` matches (or doesn't) from `back` characters before here."""

    start: int
    wanted: bool
    back: int | None
    then: int


_State = _Char | _Fork | _At | _Look
_ACCEPT: Final = -1


class Pattern:
    """`Pattern(source).fullmatch(text, budget)` is `bool(re.fullmatch(source, text))`; the same for `match`.

    Raises PatternError for what `re` doesn't parse and for back references, conditionals, flags, atomic groups and
    possessive repeats, TooCostly when the budget is spent.
    """

    def __init__(self, source: str, budget: Budget) -> None:
        self._states: list[_State] = []
        self._steps: dict[tuple[frozenset[int], str, str], tuple[bool, frozenset[int]]] = {}
        self._looks_around = False
        self._building = budget
        budget.spend(5 * len(source))
        try:
            tree = _parser.parse(source)
            if tree.state.flags & ~re.UNICODE.value:
                raise PatternError("flags such as (?i) aren't taken in patterns")
            self._start = self._sequence(tree, _ACCEPT)
        except (re.error, RecursionError, OverflowError) as error:
            raise PatternError(f"it isn't a regular expression: {error}") from error

    def fullmatch(self, text: str, budget: Budget) -> bool:
        return self._reaches(self._start, text, 0, len(text), budget)

    def match(self, text: str, budget: Budget) -> bool:
        return self._reaches(self._start, text, 0, None, budget)

    def _reaches(self, start: int, text: str, here: int, end: int | None, budget: Budget) -> bool:
        """Whether acceptance is reached from `start` at `here`: at `end`, or anywhere if that is None."""
        live = frozenset({start})
        while live:
            accepted, live = self._step(live, text, here, budget)
            if accepted and end in (None, here):
                return True
            here += 1
        return False

    def _step(self, live: frozenset[int], text: str, here: int, budget: Budget) -> tuple[bool, frozenset[int]]:
        """Whether `live` accepts at `here`, and the states that are live after the character there.

        Without look-arounds this depends on the neighbouring characters only, so it is computed once for each pair.
        """
        budget.spend(3)
        key = (live, text[here - 1 : here], text[here : here + 1])
        if (known := self._steps.get(key)) is not None:
            return known
        closed = self._close(live, text, here, budget)
        result = _ACCEPT in closed, frozenset(self._read(closed, key[2]))
        if not self._looks_around:
            self._steps[key] = result
        return result

    def _close(self, live: frozenset[int], text: str, here: int, budget: Budget) -> set[int]:
        """Every state that is reached from `live` without reading."""
        waiting, closed = list(live), set(live)
        while waiting:
            budget.spend(15)
            state = waiting.pop()
            for following in self._follow(state, text, here, budget):
                if following not in closed:
                    closed.add(following)
                    waiting.append(following)
        return closed

    def _follow(self, index: int, text: str, here: int, budget: Budget) -> Sequence[int]:
        if index == _ACCEPT:
            return ()
        match self._states[index]:
            case _Fork(targets):
                return targets
            case _At(holds, then):
                return (then,) if holds(text, here) else ()
            case _Look(start, wanted, back, then):
                return (then,) if self._looks(start, back, text, here, budget) is wanted else ()
        return ()

    def _read(self, closed: set[int], character: str) -> Iterator[int]:
        for index in closed:
            state = self._states[index] if index != _ACCEPT else None
            if character and isinstance(state, _Char) and state.test(character):
                yield state.then

    def _looks(self, start: int, back: int | None, text: str, here: int, budget: Budget) -> bool:
        if back is None:
            return self._reaches(start, text, here, None, budget)
        return here >= back and self._reaches(start, text, here - back, here, budget)

    def _add(self, state: _State) -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternError("it is too large")
        self._building.spend(40)
        self._states.append(state)
        return len(self._states) - 1

    def _sequence(self, items: Any, then: int) -> int:
        """The state at which `items` begin, followed by `then`. Built from the end backwards."""
        self._building.spend(8)
        for item in reversed(list(items)):
            then = self._item(item, then)
        return then

    def _item(self, item: Any, then: int) -> int:
        code, argument = item
        if code in (_op.LITERAL, _op.NOT_LITERAL, _op.ANY, _op.IN):
            return self._add(_Char(_test(code, argument), then))
        if code is _op.BRANCH:
            return self._add(_Fork([self._sequence(branch, then) for branch in argument[1]]))
        if code is _op.SUBPATTERN:
            _, added, removed, inside = argument
            if added or removed:
                raise PatternError("flags such as (?i:…) aren't taken in patterns")
            return self._sequence(inside, then)
        if code in (_op.MAX_REPEAT, _op.MIN_REPEAT):
            return self._repeat(argument, then)
        if code is _op.AT and argument in _ASSERTIONS:
            return self._add(_At(_ASSERTIONS[argument], then))
        if code in (_op.ASSERT, _op.ASSERT_NOT):
            return self._look(code is _op.ASSERT, argument, then)
        raise PatternError(f"{str(code).lower()} isn't taken in patterns")

    def _look(self, wanted: bool, argument: Any, then: int) -> int:
        direction, inside = argument
        shortest, longest = inside.getwidth()
        if direction < 0 and shortest != longest:
            raise PatternError("a look-behind needs a fixed width")
        self._looks_around = True
        back = None if direction > 0 else shortest
        return self._add(_Look(self._sequence(inside, _ACCEPT), wanted, back, then))

    def _repeat(self, argument: Any, then: int) -> int:
        least, most, inside = argument
        if most is _EVERY:
            loop = _Fork([then])
            then = self._add(loop)
            loop.targets.append(self._sequence(inside, then))
        else:
            done = then
            for _ in range(most - least):
                then = self._add(_Fork([self._sequence(inside, then), done]))
        for _ in range(least):
            then = self._sequence(inside, then)
        return then


def _test(code: Any, argument: Any) -> Test:
    """What one character must be."""
    if code is _op.ANY:
        return lambda character: character != "\n"
    if code is _op.LITERAL:
        wanted = chr(argument)
        return lambda character: character == wanted
    if code is _op.NOT_LITERAL:
        unwanted = chr(argument)
        return lambda character: character != unwanted
    negated = argument[0][0] is _op.NEGATE
    tests = [_member(*item) for item in argument[negated:]]
    return lambda character: any(test(character) for test in tests) is not negated


def _member(code: Any, argument: Any) -> Test:
    """One item of a [set]."""
    if code is _op.RANGE:
        low, high = argument
        return lambda character: low <= ord(character) <= high
    if code is _op.CATEGORY:
        return _CATEGORIES[argument]
    return _test(code, argument)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _at_boundary(text: str, here: int) -> bool:
    before = here > 0 and _is_word(text[here - 1])
    after = here < len(text) and _is_word(text[here])
    return before is not after


def _at_end(text: str, here: int) -> bool:
    return here == len(text) or (here == len(text) - 1 and text[here] == "\n")


_CATEGORIES: Final[dict[Any, Test]] = {
    _op.CATEGORY_DIGIT: str.isdecimal,
    _op.CATEGORY_NOT_DIGIT: lambda character: not character.isdecimal(),
    _op.CATEGORY_SPACE: str.isspace,
    _op.CATEGORY_NOT_SPACE: lambda character: not character.isspace(),
    _op.CATEGORY_WORD: _is_word,
    _op.CATEGORY_NOT_WORD: lambda character: not _is_word(character),
}
_ASSERTIONS: Final[dict[Any, Assertion]] = {
    _op.AT_BEGINNING: lambda text, here: here == 0,
    _op.AT_BEGINNING_STRING: lambda text, here: here == 0,
    _op.AT_END: _at_end,
    _op.AT_END_STRING: lambda text, here: here == len(text),
    _op.AT_BOUNDARY: _at_boundary,
    _op.AT_NON_BOUNDARY: lambda text, here: not _at_boundary(text, here) and len(text) > 0,
}
