"""What is known of a prompt is not computed again, and never reaches another adapter or salt."""

from collections.abc import Callable
from typing import Any

import pytest


def test_a_known_prefix_is_not_computed_again(bench: Callable[..., Any]) -> None:
    engine = bench()
    first = engine.submit(prompt=10)
    engine.finish()
    second = engine.submit(prompt=10)
    engine.finish()
    assert (first.cached, second.cached) == (0, 8)
    assert engine.tokens(first) == engine.tokens(second)


@pytest.mark.parametrize("other", [{"salt": "globex"}, {"digest": "x"}, {"digest": "y", "salt": "acme"}])
def test_a_prefix_is_never_shared_between_adapters_or_salts(bench: Callable[..., Any], other: dict[str, str]) -> None:
    engine = bench()
    engine.submit(prompt=10, **({"salt": "acme"} if "salt" in other else {}))
    engine.finish()
    stranger = engine.submit(prompt=10, **other)
    engine.finish()
    assert stranger.cached == 0


def test_a_known_prefix_of_an_adapter_is_met_again_even_after_its_reload(bench: Callable[..., Any]) -> None:
    """Other engines switch prefix caching off as soon as adapters are on."""
    engine = bench()
    asked = []
    for _ in range(3):
        asked.append(engine.submit(prompt=10, digest="x"))
        engine.finish()
        engine.engine.ask(lambda: engine.slots.evict("x"))
        engine.steps()
    assert [sequence.cached for sequence in asked] == [0, 8, 8]
    assert engine.slots.tally.misses == 3
    assert engine.tokens(asked[0]) == engine.tokens(asked[2])


@pytest.mark.parametrize("salt", ["", "acme", ":acme", "1:x:acme", "x" * 100_000, "\x00\n\u202eé", "acme\x00"])
def test_a_salt_that_somebody_chose_crashes_nothing_and_meets_only_itself(bench: Callable[..., Any], salt: str) -> None:
    engine = bench()
    for digest, mine in (("x", "tenant-a"), ("x:1", "acme"), ("", "x:acme")):
        engine.submit(prompt=10, digest=digest, salt=mine)
    engine.finish()
    first = engine.submit(prompt=10, digest="x", salt=salt)
    engine.finish()
    again = engine.submit(prompt=10, digest="x", salt=salt)
    engine.finish()
    assert (first.cached, again.cached) == (0, 8)
