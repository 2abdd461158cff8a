"""Tokens have bytes, and names that no two of them share; a chat template says where a turn ends."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from inference.vocabulary import Vocabulary, end_of_turn
from tests.vocabularies import KINDS, byte_fallback, byte_level, ids, metaspace

TOKENIZERS = {kind: make() for kind, make in KINDS.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(before=st.none() | st.integers(0, 300), rivals=st.sets(st.integers(0, 400), max_size=40))
def test_no_two_tokens_of_a_place_have_one_name(kind: str, before: int | None, rivals: set[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    vocabulary = Vocabulary.of(tokenizer)
    before = vocabulary.last([before], skip_special=False) if before is not None else None
    names = vocabulary.names(rivals, before)
    assert names.keys() == rivals
    assert len(set(names.values())) == len(rivals)


def test_a_token_is_called_what_it_adds_to_the_text() -> None:
    tokenizer = byte_fallback()
    bare, spaced, byte, letter, a, mark = ids(tokenizer, "Paris", "▁Paris", "<0xE6>", "<0x61>", "a", "<|end|>")
    named = Vocabulary.of(tokenizer).names([bare, spaced, byte, letter, a, mark, 9999], before=a)
    assert named == {
        bare: "Paris",
        spaced: " Paris",
        byte: "bytes:\\xe6",
        letter: "a",
        a: f"token_id:{a}",
        mark: "<|end|>",
        9999: "token_id:9999",
    }


def test_at_the_beginning_of_a_text_two_tokens_may_say_the_same() -> None:
    tokenizer = metaspace()
    bare, spaced = ids(tokenizer, "Paris", "▁Paris")
    assert Vocabulary.of(tokenizer).names([spaced, bare], None) == {bare: "Paris", spaced: f"token_id:{spaced}"}


def test_a_token_is_known_by_its_own_bytes() -> None:
    tokenizer = byte_level()
    euro = tokenizer.encode("€").ids
    assert b"".join(Vocabulary.of(tokenizer).raw(token, None) for token in euro) == "€".encode()


def chat(template: str | None, **marks: bool) -> Any:
    """marks: further tokens, and whether each is special."""
    backend = byte_level()
    backend.add_tokens([AddedToken(f"<{mark}>", special=special) for mark, special in marks.items()])
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = template
    return tokenizer


TURNS = "{%% for m in messages %%}<|start|>{{ m.role }}\n{{ m.content }}%s{%% endfor %%}"


@pytest.mark.parametrize(
    ("template", "mark"),
    [
        (TURNS % "<eot>\n", "<eot>"),
        (TURNS % " <plain>", "<plain>"),
        (TURNS % "{% if not loop.last %}<plain>{% else %}<eot>{% endif %}", "<eot>"),
        (TURNS % "\n### User:", None),
        (TURNS % "", None),
        ("{{ raise_exception('no assistant') }}", None),
        ("{{ messages[0].nothing.there }}", None),
        (None, None),
    ],
)
def test_the_template_says_which_token_ends_a_turn(template: str | None, mark: str | None) -> None:
    tokenizer = chat(template, eot=True, plain=False)
    expected = None if mark is None else tokenizer.backend_tokenizer.token_to_id(mark)
    assert end_of_turn(tokenizer) == expected
