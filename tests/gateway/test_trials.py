"""What tells conversations apart."""

from typing import Any

from gateway.trials import opening


def turns(*said: tuple[str, str]) -> Any:
    return [{"role": role, "content": content} for role, content in said]


FIRST = opening(turns(("user", "Where is my order?")))


def test_a_conversation_is_known_by_its_users_first_words_whatever_the_application_says_around_them() -> None:
    for day in ("Monday", "Tuesday"):
        later = turns(
            ("system", f"Today is {day}."),
            ("user", "Where is my order?"),
            ("assistant", "On its way."),
            ("user", "Still?"),
        )
        assert opening(later) == FIRST


def test_other_first_words_are_another_conversation_and_no_words_are_none() -> None:
    assert opening(turns(("user", "Where is my parcel?"))) != FIRST
    assert opening(turns(("system", "Where is my order?"))) == ""
