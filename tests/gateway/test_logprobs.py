from gateway import logprobs
from inference.client import PositionLogprobs, TokenLogprob

YES = TokenLogprob(1, "yes", b"yes", -0.1)
NO = TokenLogprob(2, "no", b"no", -2.5)
NEVER = TokenLogprob(3, "\ufffd", b"\xf0", float("-inf"))


def test_the_likeliest_include_the_chosen_if_it_is_one_of_them() -> None:
    assert logprobs.best(PositionLogprobs(YES, (NO, NEVER)), 2) == [YES, NO]
    assert logprobs.best(PositionLogprobs(NEVER, (YES, NO)), 2) == [YES, NO]
    assert logprobs.best(PositionLogprobs(YES, (YES, NO)), 2) == [YES, NO]
    assert logprobs.best(PositionLogprobs(YES, (NO,)), 0) == []


def test_a_token_that_is_half_a_character_has_its_bytes_and_no_infinity() -> None:
    (entry,) = logprobs.content([PositionLogprobs(NEVER, ())], 0)
    assert entry == {"token": "\ufffd", "bytes": [0xF0], "logprob": -9999.0, "top_logprobs": []}


def test_the_legacy_lists_are_parallel_and_count_characters_from_where_the_answer_is() -> None:
    place = logprobs.Place()
    place.pass_by(TokenLogprob(4, "0123456789", b"0123456789", 0.0))
    told = logprobs.legacy([PositionLogprobs(YES, (NO,)), PositionLogprobs(NO, (YES,))], 1, place)
    assert told == {
        "tokens": ["yes", "no"],
        "token_logprobs": [-0.1, -2.5],
        "top_logprobs": [{"yes": -0.1}, {"yes": -0.1, "no": -2.5}],
        "text_offset": [10, 13],
    }


def test_the_offsets_are_of_characters_though_a_token_is_named_by_its_bytes() -> None:
    halves = [TokenLogprob(5, "bytes:\\xc3", b"\xc3", -1.0), TokenLogprob(6, "bytes:\\xa9", b"\xa9", -1.0)]
    told = logprobs.legacy([PositionLogprobs(token, ()) for token in (*halves, YES, NO)], 0, logprobs.Place())
    assert told["text_offset"] == [0, 0, 1, 4]
    assert [list(place) for place in told["top_logprobs"][:2]] == [["bytes:\\xc3"], ["bytes:\\xa9"]]
