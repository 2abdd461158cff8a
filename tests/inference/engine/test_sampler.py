"""How logits become tokens: greedy, filtered, seeded, penalised, and with log-probabilities."""

from collections import Counter
from typing import Any

import pytest
import torch

from inference.client import Sampling
from inference.engine.sampler import _adjust, sample
from inference.engine.sequence import Sequence

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0]])


def sequence(**options: Any) -> Sequence:
    return Sequence(0, [0], Sampling(**({"max_tokens": 9} | options)))


def drawn(times: int = 400, **options: Any) -> Counter[int]:
    one = sequence(seed=1, **options)
    return Counter(sample(LOGITS, [one])[0].token for _ in range(times))


def test_temperature_zero_takes_the_likeliest() -> None:
    assert drawn(20, temperature=0.0) == {1: 20}


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2}),
        ({"top_p": 0.5}, {1}),
        ({"top_p": 0.75}, {1, 2}),
        ({"min_p": 0.3}, {1, 2}),
        ({"min_p": 0.99, "top_p": 0.01}, {1}),
        ({"temperature": 8.0}, {0, 1, 2, 3, 4}),
    ],
)
def test_filters_leave_what_they_should(options: dict[str, Any], possible: set[int]) -> None:
    assert set(drawn(**options)) == possible


def test_draws_follow_the_probabilities() -> None:
    counts = drawn(4000)
    expected = LOGITS[0].softmax(0)
    assert [counts[token] / 4000 for token in range(5)] == pytest.approx(expected.tolist(), abs=0.03)


def test_a_seed_gives_the_same_tokens_whatever_shares_the_batch() -> None:
    alone, shared = sequence(seed=42), sequence(seed=42)
    others = [sequence(seed=s, top_k=2) for s in range(3)]
    first = [sample(LOGITS, [alone])[0].token for _ in range(20)]
    rows = LOGITS.repeat(4, 1)
    second = [sample(rows, [others[0], shared, *others[1:]])[1].token for _ in range(20)]
    assert first == second
    assert len(set(first)) > 1


def test_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    one = sequence(temperature=0.0, frequency_penalty=0.6)
    one.tokens += [1, 1]
    assert sample(LOGITS, [one])[0].token == 2
    present = sequence(temperature=0.0, presence_penalty=0.9)
    present.tokens += [1, 1]
    assert sample(LOGITS, [present])[0].token == 1
    prompted = Sequence(0, [1, 1, 1], Sampling(9, temperature=0.0, frequency_penalty=2.0))
    assert sample(LOGITS, [prompted])[0].token == 1


@pytest.mark.parametrize(("penalty", "next_token"), [(1.0, 1), (1.4, 1), (1.6, 2), (0.5, 1)])
def test_repetition_is_penalised_in_the_prompt_too(penalty: float, next_token: int) -> None:
    one = Sequence(0, [1], Sampling(9, temperature=0.0, repetition_penalty=penalty))
    assert sample(LOGITS, [one])[0].token == next_token


def test_repetition_makes_an_unlikely_token_less_likely() -> None:
    one = Sequence(0, [0], Sampling(9, temperature=0.0, repetition_penalty=1.5))
    assert sample(torch.tensor([[-1.0, -1.2]]), [one])[0].token == 1


def test_a_bad_word_is_never_said_whole() -> None:
    one = sequence(temperature=0.0)
    one.bad_words = [[1, 2], [3]]
    assert sample(LOGITS, [one])[0].token == 1
    one.tokens += [1]
    assert sample(torch.tensor([[0.0, 1.0, 3.0, 9.0, 2.0]]), [one])[0].token == 4


def test_a_bad_word_is_met_in_the_answer_and_not_across_its_beginning() -> None:
    one = Sequence(0, [1], Sampling(9, temperature=0.0))
    one.bad_words = [[1, 2]]
    assert sample(torch.tensor([[0.0, 1.0, 3.0]]), [one])[0].token == 2


def test_nothing_that_ends_an_answer_is_drawn_before_its_least() -> None:
    one = sequence(temperature=0.0, min_tokens=1)
    one.ends = frozenset({1, 4096})
    assert sample(LOGITS, [one])[0].token == 2
    one.tokens += [2]
    assert sample(LOGITS, [one])[0].token == 1


def test_what_one_sequence_may_not_say_its_neighbours_may() -> None:
    barred, free = sequence(temperature=0.0, repetition_penalty=9.0), sequence(temperature=0.0)
    barred.bad_words, barred.tokens = [[1]], [0, 2]
    assert [drawn.token for drawn in sample(LOGITS.repeat(2, 1), [barred, free])] == [2, 1]


def test_logprobs_are_of_the_model_and_not_of_the_sampling() -> None:
    one = sequence(temperature=0.0, frequency_penalty=2.0, logprobs=2)
    one.tokens += [1]
    found = sample(LOGITS, [one])[0]
    expected = LOGITS[0].log_softmax(0).tolist()
    assert found.logprobs is not None
    (token, logprob), top = found.logprobs.chosen, found.logprobs.top
    assert (token, [other for other, _ in top]) == (2, [1, 2])
    assert [logprob, *(value for _, value in top)] == pytest.approx([expected[2], expected[1], expected[2]])


def test_a_row_that_is_not_a_number_is_told_and_spoils_no_other() -> None:
    rows = torch.cat([LOGITS, torch.full((1, 5), float("nan"))])
    good, bad = sample(rows, [sequence(temperature=0.0), sequence()])
    assert (good.token, good.finite, bad.finite) == (1, True, False)


class Watched(list[int]):
    """Tokens that count how many of them were looked at."""

    seen = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.seen += len(found) if isinstance(key, slice) else 1
        return found

    def __iter__(self) -> Any:
        self.seen += len(self)
        return super().__iter__()


def test_penalties_look_at_a_token_once_and_forget_none_when_it_is_computed_again() -> None:
    penalties: dict[str, Any] = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.2}
    one = Sequence(0, [0, 1] * 500, Sampling(300, seed=3, **penalties))
    one.bad_words = [[1, 2, 3]]
    one.tokens = Watched(one.tokens)
    for step in range(200):
        token = sample(LOGITS, [one])[0].token
        fresh = Sequence(1, one.prompt, one.sampling)
        fresh.bad_words, fresh.tokens = one.bad_words, list(one.tokens)
        assert torch.equal(_adjust(LOGITS, [one]), _adjust(LOGITS, [fresh])), "a penalty was lost"
        one.tokens.seen -= len(one.tokens)  # looked at by the test
        one.tokens.append(token)
        if step == 100:
            one.said = None  # as the scheduler does with one that is driven out
    assert one.tokens.seen < 10 * len(one.tokens), "all tokens are looked at in every step"
