"""Tokens become text without half characters, and stop strings cut it wherever tokens end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inference.text import TextStream, Vocabulary


def byte_tokenizer() -> Tokenizer:
    """One token a byte, in GPT-2's stand-in characters; 256 is a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


TOKENIZER = byte_tokenizer()


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(TOKENIZER, stop)
    found = []
    for token in TOKENIZER.encode(text).ids:
        found.append(stream.push(token))
        if stream.stopped:
            return found, True
    return [*found, stream.flush()], False


@settings(max_examples=150)
@given(st.text())
def test_the_pieces_add_up_to_the_text(text: str) -> None:
    found, stopped = pieces(text)
    assert "".join(found) == text
    assert not stopped


def test_no_piece_holds_half_a_character() -> None:
    found, _ = pieces("añ€😀b")
    assert "".join(found) == "añ€😀b"
    assert not any("\ufffd" in piece for piece in found)


def test_bytes_that_never_became_a_character_are_shown_at_the_end() -> None:
    stream = TextStream(TOKENIZER)
    ids = TOKENIZER.encode("a€").ids
    assert [stream.push(token) for token in ids[:-1]] == ["a", "", ""]
    assert "\ufffd" in stream.flush()


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one STOP two", ("STOP",), "one "),
        ("one STO two", ("STOP",), "one STO two"),
        ("aab", ("ab",), "a"),
        ("ends with ST", ("STOP",), "ends with ST"),
        ("x\n\ny", ("\n\n", "y"), "x"),
        ("über€uro", ("€",), "über"),
        ("plain", ("",), "plain"),
    ],
)
def test_a_stop_string_cuts_the_answer_and_is_not_part_of_it(text: str, stop: tuple[str, ...], expected: str) -> None:
    found, stopped = pieces(text, stop)
    assert "".join(found) == expected
    assert stopped == (expected != text)


@settings(max_examples=150)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_first_stop_string_to_be_complete_wins_and_nothing_of_it_leaks(text: str, stop: list[str]) -> None:
    found, stopped = pieces(text, tuple(stop))
    shown = "".join(found)
    assert stopped == any(string in text for string in stop)
    assert text.startswith(shown)
    assert not any(string in shown for string in stop)


def test_special_tokens_are_no_text() -> None:
    stream = TextStream(TOKENIZER)
    (end,) = TOKENIZER.encode("<|end|>").ids
    assert stream.push(end) + stream.flush() == ""


def test_a_token_is_known_by_its_own_bytes() -> None:
    vocabulary = Vocabulary(TOKENIZER)
    euro = TOKENIZER.encode("€").ids
    assert b"".join(vocabulary.raw(token) for token in euro) == "€".encode()
    assert vocabulary.text(TOKENIZER.encode("a").ids[0]) == "a"
