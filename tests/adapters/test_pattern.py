"""The bounded matcher says what `re` says, and never hangs."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.pattern import Budget, Pattern, PatternError, TooCostly

NAMES = [
    "",
    "lm_head",
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.gate_up_proj",
    "model.vision_tower.layers.1.self_attn.q_proj",
    "model.layers.0.mlp.experts.3.w1",
]
PATTERNS = [
    "",
    "q_proj",
    r".*\.q_proj",
    r".*q_proj|.*w1",
    r"(.*\.)?(q_proj)$",
    r"(.*\.)?(^model.layers.0.self_attn.q_proj)$",
    r".*layers\.\d+\..*(q|k|v)_proj",
    r".*layers\.(0|[1-9]|1[0-5])\..*",
    r"^(?!.*vision).*\.(q_proj|w1)$",
    r"model\.layers\.(?!0\.)\d+\..*",
    r".*(?<=attn\.)q_proj",
    r".*(?<!attn\.)\w+",
    r"(?:.*?(?:language|text|model).*?(?:self_attn|attn|mlp).*?(?:q_proj|gate_up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)",
    r"\bmodel\b.*\B_proj",
    r"[^.]+(\.[^.]+){3,5}",
    r"[a-z_.\d]*?",
    r"(a*)*b?.*",
    r"(?P<all>.+)",
    r"(?:)*x|\Z",
    r"\S+\D\W?\w*\s?",
    r".{0,3}m?.*head",
    r"(|m)(o|)del.*",
]


@pytest.mark.parametrize("source", PATTERNS)
def test_what_people_write_matches_as_re_does(source: str) -> None:
    pattern = Pattern(source, Budget(10**6))
    for name in NAMES:
        assert pattern.fullmatch(name, Budget(10**6)) == bool(re.fullmatch(source, name)), name
        assert pattern.match(name, Budget(10**6)) == bool(re.match(source, name)), name


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\w", r"\d", r"\.", "^", "$", r"\b", r"\B", "1"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(?:" + "|".join(parts) + ")"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,2}?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
        inner.map(lambda part: f"(?={part})"),
        inner.map(lambda part: f"(?!{part})"),
    ),
    max_leaves=8,
)


@settings(max_examples=600)
@given(source=EXPRESSIONS, text=st.text("ab1.", max_size=6))
def test_whatever_the_expression_the_answer_is_the_one_of_re(source: str, text: str) -> None:
    pattern = Pattern(source, Budget(10**6))
    assert pattern.fullmatch(text, Budget(10**6)) == bool(re.fullmatch(source, text))
    assert pattern.match(text, Budget(10**6)) == bool(re.match(source, text))


@pytest.mark.parametrize("source", [r"(a+)+$", r"(a|a)*b", r"(.*)*(.*)*(.*)*x", r"(\w*\w*\w*)*\.", "(a?){30}a{30}b"])
def test_patterns_that_make_re_hang_are_answered_at_once(source: str) -> None:
    started = time.thread_time()
    assert not Pattern(source, Budget(10**6)).fullmatch("a" * 200 + "!", Budget(10**7))
    assert time.thread_time() - started < 30


def test_a_spent_budget_is_an_error_and_no_answer() -> None:
    with pytest.raises(TooCostly):
        Pattern("(a|b)*c", Budget(10**6)).fullmatch("a" * 500, Budget(1_200))
    with pytest.raises(TooCostly):
        Pattern("((a{99}){2}){2}", Budget(1_000))


@pytest.mark.parametrize(
    "source",
    [
        "(",
        "[",
        "*",
        "a{2,1}",
        r"(a)\1",
        "(a)(?(1)b|c)",
        "(?i)a",
        "(?i:a)",
        "(?x) a",
        "a++",
        "(?>a)",
        "(?<=a*)b",
        "(((((a{99}){99}){99}){99}){99})",
        "((((()){99999}){99999}){99999}){99999}",
        "a{4294967295}",
        "(" * 2_000 + ")" * 2_000,
        "(?:" * 2_000 + "a" + ")*" * 2_000,
        "\\",
    ],
)
def test_what_is_no_pattern_or_needs_backtracking_is_refused(source: str) -> None:
    started = time.thread_time()
    with pytest.raises(PatternError):
        Pattern(source, Budget(10**6))
    assert time.thread_time() - started < 30
