"""Tokens become text without half characters, and stop strings cut it wherever tokens end."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.text import TextStream
from tests.vocabularies import KINDS, byte_fallback, byte_level, ids

TOKENIZERS = {kind: make() for kind, make in KINDS.items()}
TOKENIZER = byte_level()
SENTENCES = byte_fallback()
EITHER = pytest.mark.parametrize("skip", [True, False], ids=["specials hidden", "specials shown"])
EVERY = pytest.mark.parametrize("kind", KINDS)

RUNS = st.lists(st.integers(0, 400), max_size=12)
"""Of tokens, those of no tokenizer and bytes that are no text among them."""


@st.composite
def words_and_characters(draw: st.DrawFn, kind: str) -> list[int]:
    """Tokens whose bytes, where there are tokens of bytes, are UTF-8."""
    tokenizer = TOKENIZERS[kind]
    byte = {n: token for n in range(256) if (token := tokenizer.token_to_id(f"<0x{n:02X}>")) is not None}
    words = [[token] for token in range(tokenizer.get_vocab_size() + 2) if token not in byte.values()]
    characters = st.characters(exclude_categories=["Cs"]).map(lambda text: [byte[n] for n in text.encode()])
    drawn = draw(st.lists(st.sampled_from(words) | characters if byte else st.sampled_from(words), max_size=8))
    return [token for run in drawn for token in run]


def said(stream: TextStream, answer: list[int]) -> str:
    return "".join([stream.push(token) for token in answer]) + stream.flush()


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(TOKENIZER, stop)
    found = []
    for token in TOKENIZER.encode(text).ids:
        found.append(stream.push(token))
        if stream.stopped:
            return found, True
    return [*found, stream.flush()], False


@EITHER
@EVERY
@settings(max_examples=100)
@given(data=st.data())
def test_a_prompt_s_text_and_the_answer_s_are_the_text_of_both(kind: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    prompt, answer = data.draw(words_and_characters(kind)), data.draw(words_and_characters(kind))
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    if before.endswith("\ufffd"):
        return  # it ends half-way in a character, of which the answer may bring the rest
    text = said(TextStream(tokenizer, (), prompt, skip_special=skip), answer)
    assert before + text == tokenizer.decode(prompt + answer, skip_special_tokens=skip)


@EITHER
@EVERY
@settings(max_examples=100)
@given(prompt=RUNS, answer=RUNS)
def test_the_bytes_of_the_tokens_are_those_of_the_answer(
    kind: str, skip: bool, prompt: list[int], answer: list[int]
) -> None:
    stream, told, text = TextStream(TOKENIZERS[kind], (), prompt, skip_special=skip), b"", ""
    for token in answer:
        told += stream.raw(token)
        text += stream.push(token)
    assert told.decode(errors="replace") == text + stream.flush()


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
    answer = TOKENIZER.encode("a€").ids
    assert [stream.push(token) for token in answer[:-1]] == ["a", "", ""]
    assert "\ufffd" in stream.flush()


def test_an_answer_goes_on_after_bytes_that_are_no_text() -> None:
    answer = ids(SENTENCES, "▁The", "<0x0A>", "<0xF0>", "<0x9F>", "▁city", "<0xE6>", "<0x97>", "<0xA5>", "▁is")
    stream = TextStream(SENTENCES)
    assert [stream.push(token) for token in answer] == ["The", "\n", "", "", "\ufffd city", "", "", "日", " is"]


def test_the_first_space_of_an_answer_is_kept_behind_a_prompt_alone() -> None:
    prompt, answer = ids(SENTENCES, "<|start|>", "▁The", "▁city", "<|end|>"), ids(SENTENCES, "▁Paris", "▁is")
    assert said(TextStream(SENTENCES, (), prompt), answer) == " Paris is"
    assert said(TextStream(SENTENCES, (), prompt[:1]), answer) == "Paris is"


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
        ("Paris.<|end|>And Rome", ("<|end|>",), "Paris."),
        ("Paris<|start|>.<|end|>\nuser", ("<|end|>\nu",), "Paris."),
        ("Paris<|start|>.", ("s<|start|>.",), "Pari"),
        ("Pa<|start|>ris", ("aris",), "P"),
        ("Paris.<|start|>", ("<|end|>", "<|", "start"), "Paris."),
    ],
)
def test_a_stop_string_cuts_the_answer_and_is_not_part_of_it(text: str, stop: tuple[str, ...], expected: str) -> None:
    found, stopped = pieces(text, stop)
    assert "".join(found) == expected
    assert stopped == (expected != re.sub(r"<\|\w+\|>", "", text))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [("one STOP two", "STOP", "one STOP"), ("Paris.<|end|>\n", "<|end|>", "Paris.<|end|>"), ("no", "x", "no")],
)
def test_a_stop_string_is_part_of_the_answer_if_asked_for(text: str, stop: str, expected: str) -> None:
    stream = TextStream(TOKENIZER, (stop,), include_stop=True)
    assert said(stream, TOKENIZER.encode(text).ids) == expected


@pytest.mark.parametrize(
    ("text", "stop", "least", "expected"),
    [
        ("a.b.c.", ".", 2, "a.b"),
        ("a.b.c.", ".", 3, "a.b"),
        ("a.b.c.", ".", 4, "a.b.c"),
        ("a.b.c.", ".b.", 3, "a"),
        ("a.b.c.", ".b.", 4, "a.b.c."),
        ("a.b.c.", ".", 9, "a.b.c."),
    ],
)
def test_no_stop_string_ends_within_the_tokens_that_an_answer_has_at_least(
    text: str, stop: str, least: int, expected: str
) -> None:
    stream = TextStream(TOKENIZER, (stop,), min_tokens=least)
    assert said(stream, TOKENIZER.encode(text).ids) == expected


@settings(max_examples=150)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_first_stop_string_to_be_complete_wins_and_nothing_of_it_leaks(text: str, stop: list[str]) -> None:
    found, stopped = pieces(text, tuple(stop))
    shown = "".join(found)
    assert stopped == any(string in text for string in stop)
    assert text.startswith(shown)
    assert not any(string in shown for string in stop)


def test_special_tokens_are_text_if_asked_for_alone() -> None:
    answer = TOKENIZER.encode("a<|end|>").ids
    assert said(TextStream(TOKENIZER), answer) == "a"
    assert said(TextStream(TOKENIZER, skip_special=False), answer) == "a<|end|>"


def test_a_token_that_ends_the_answer_is_none_of_its_text() -> None:
    stream = TextStream(TOKENIZER)
    a, b = TOKENIZER.encode("ab").ids
    assert (stream.push(a), stream.push(b, shown=False), stream.flush()) == ("a", "", "")
