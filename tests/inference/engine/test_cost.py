"""A step's budget counts what a token costs with its adapter, so that wide ones make no step longer than it may be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.base import BaseSpec
from adapters.mixtures import Experts
from inference.engine.cost import token_cost
from inference.lora.weights import AdapterWeights, Correction

SHAPES = {
    "q_proj": (896, 896),
    "k_proj": (128, 896),
    "v_proj": (128, 896),
    "o_proj": (896, 896),
    "gate_proj": (4864, 896),
    "up_proj": (4864, 896),
    "down_proj": (896, 4864),
}
HEAD = {"lm_head": (151_936, 896)}
QWEN = BaseSpec("Qwen2ForCausalLM", 2048, 151_936, 896, SHAPES | HEAD, {"embed": (151_936, 896)}, True)


def number(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def adapter(rank: int, linears: dict[str, tuple[int, int]] = SHAPES, **more: Any) -> AdapterWeights:
    pairs = {name: (number(rank, inputs), number(out, rank), 2.0) for name, (out, inputs) in linears.items()}
    return AdapterWeights(pairs, 0, **more)


@pytest.mark.parametrize(("rank", "cost"), [(1, 1.0015), (16, 1.0246), (256, 1.3934)])
def test_a_token_costs_its_rank_times_what_the_models_shape_says(rank: int, cost: float) -> None:
    k = sum(out + inputs for out, inputs in SHAPES.values()) / sum(out * inputs for out, inputs in SHAPES.values())
    assert token_cost(QWEN, adapter(rank)) == pytest.approx(1 + rank * k) == pytest.approx(cost, rel=1e-4)


def test_only_what_is_multiplied_for_every_token_counts() -> None:
    total = sum(out * inputs for out, inputs in SHAPES.values())
    assert token_cost(QWEN, adapter(0, {})) == 1.0
    assert token_cost(QWEN, adapter(64, HEAD)) == 1.0, "the head sees one token of a row"
    assert token_cost(QWEN, adapter(8, {"q_proj": SHAPES["q_proj"]})) == pytest.approx(1 + 8 * 1792 / total)
    embedding = {"embed": (number(151_936, 8), number(896, 8), 1.0)}
    assert token_cost(QWEN, adapter(8, {}, embeddings=embedding)) == pytest.approx(1 + 8 * 896 / total)
    retrained = {"k_proj": Correction(number(128, 896)), "v_proj": Correction(factor=number(128))}
    assert token_cost(QWEN, adapter(0, {}, corrections=retrained)) == pytest.approx(1 + 128 * 896 / total)


def test_a_mixtures_experts_and_a_base_without_linears_divide_by_nothing() -> None:
    experts = BaseSpec("M", 64, 9, 8, {"mlp.experts.0.up": (64, 8), "lm_head": (9, 8)}, {}, False)
    assert token_cost(experts, adapter(4, {"lm_head": (9, 8)})) == 1.0


def test_of_a_mixtures_experts_those_count_that_compute_a_token() -> None:
    stacked = {"mlp.experts.up": Experts(8, 64, 16, 2), "mlp.experts.down": Experts(8, 16, 32, 2)}
    base = BaseSpec("M", 64, 9, 16, {"q_proj": (16, 16)}, {}, False, experts=stacked)
    pairs = {"mlp.experts.up": (number(8, 4, 16), number(8, 64, 4), 1.0)}
    whole = 16 * 16 + 2 * 64 * 16 + 2 * 16 * 32
    assert token_cost(base, adapter(0, {}, experts=pairs)) == pytest.approx(1 + 2 * 4 * (64 + 16) / whole)


def test_the_prefill_chunk_of_a_rank_256_adapter_is_shorter_than_the_bases(bench: Callable[..., Any]) -> None:
    costs = {"narrow": token_cost(QWEN, adapter(16)), "wide": token_cost(QWEN, adapter(256))}
    first = {}
    for digest in ("", "narrow", "wide"):
        engine = bench(costs=costs, batch_tokens=512, context=1024, blocks=300)
        asked = engine.submit(prompt=900, digest=digest, tokens=2)
        engine.finish()
        first[digest] = engine.echo.plans[0].tokens
        assert len(engine.tokens(asked)) == 2
    assert first == {"": 512, "narrow": 499, "wide": 367}


def test_decoding_rows_are_in_every_step_whatever_they_cost_and_prefill_goes_on(bench: Callable[..., Any]) -> None:
    engine = bench(costs={"wide": 3.0}, batch_tokens=8, rows=8, blocks=200)
    decoding = [engine.submit(prompt=1, digest="wide", tokens=40) for _ in range(6)]
    while not all(sequence.generated for sequence in decoding):
        engine.steps()
    long = engine.submit(prompt=30, digest="wide", share="globex", tokens=1)
    before = len(engine.echo.plans)
    engine.steps(30)
    for plan in engine.echo.plans[before:]:
        assert {row.sequence for row in plan.rows} >= set(decoding), "a decoding row was left out"
        assert plan.tokens <= 8
    assert engine.ended(long), "prefill starved behind decoding rows"


@settings(max_examples=40)
@given(
    costs=st.fixed_dictionaries({name: st.floats(1.0, 20.0) for name in "pqr"}),
    asked=st.lists(st.tuples(st.sampled_from(["", *"pqr"]), st.integers(1, 40), st.integers(1, 20)), max_size=14),
)
def test_no_step_costs_more_than_its_budget_by_more_than_a_token(
    bench: Callable[..., Any], costs: dict[str, float], asked: list[tuple[str, int, int]]
) -> None:
    engine = bench(costs=costs, batch_tokens=12, rows=8, slots=3, blocks=400)
    sequences = [engine.submit(prompt, digest, share=digest, tokens=tokens) for digest, prompt, tokens in asked]
    busy = bool(sequences)
    while busy:
        before = len(engine.echo.plans)
        decoding = {sequence for sequence in engine.scheduler.running if sequence.remaining == 1}
        engine.steps()
        busy = bool(engine.scheduler.live)
        decoding -= engine.waiting()  # they gave way to a share that had less
        rows = [row for plan in engine.echo.plans[before:] for row in plan.rows]
        assert decoding <= {row.sequence for row in rows}
        spent = [row.count * costs.get(row.sequence.digest, 1.0) for row in rows if row.sequence not in decoding]
        left = max(1.0, 12 - sum(costs.get(sequence.digest, 1.0) for sequence in decoding))
        assert sum(spent) < left + max(costs.values()) + 1e-9  # floats that fill 12 may not sum to it
        assert sum(row.count for row in rows) <= 12
    assert all(len(engine.tokens(sequence)) == sequence.sampling.max_tokens for sequence in sequences)
