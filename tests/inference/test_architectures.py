"""What layers see: all that came before or a window of it, layer by layer as the architecture has them; and what is
refused because the paged attention would get it wrong without a word."""

from typing import Any

import pytest
import torch

from inference.errors import PromptTooLong
from inference.models.attention import UnservedModel
from inference.models.load import load
from tests.inference.conftest import distance

TOKENS = 36
WINDOW = 24
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
BASES: dict[str, dict[str, Any]] = {
    "mistral": {},
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16},
    "gemma3_text": {"sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
    "qwen2_moe": {},
}


def variants(architecture: str) -> dict[str, dict[str, Any]]:
    whole = ["q_proj", "v_proj", "o_proj"] if architecture == "qwen2_moe" else "all-linear"
    return {
        "plain": {"r": 8, "lora_alpha": 16, "target_modules": whole},
        "dora": {"r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "v_proj"], "use_dora": True},
        "ends": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "lm_head"]},
    }


@pytest.mark.parametrize("architecture", BASES)
def test_every_kind_of_layers_stays_exact_through_windows_prefix_hits_preemption_and_eviction(
    workshop: Any, architecture: str
) -> None:
    """Prompts are longer than the window and are prefilled in chunks; memory and slots are short."""
    base = workshop.base(architecture, **BASES[architecture])
    adapters = {name: workshop.adapter(base, name, **config) for name, config in variants(architecture).items()}
    prompts = [workshop.prompt(52) + workshop.prompt(length, seed=1) for length in (3, 9)]
    driver = workshop.engine(base, adapters, slots=2, blocks=11, patience=0.0)
    expected = {name: base.answers_and_logits(adapters.get(name), prompts, TOKENS) for name in ("", *adapters)}

    for _ in range(2):
        asked = {name: [driver.submit(p, name, max_tokens=TOKENS) for p in prompts] for name in ("", *adapters)}
        driver.run()
        for name, sequences in asked.items():
            answers, logits = expected[name]
            assert [driver.tokens(sequence) for sequence in sequences] == answers, name or "base"
            for sequence, theirs in zip(sequences, logits, strict=True):
                assert distance(driver.logits(sequence), theirs) < 1e-4, name or "base"

    assert driver.scheduler.preemptions > 0
    assert driver.slots.tally.evictions > 0
    assert any(sequence.cached for sequence in driver.begun())
    assert len({str(logits[0].tolist()) for _, logits in expected.values()}) == 4, "an adapter changes nothing"


def test_layers_that_attend_in_chunks_are_refused_by_name(workshop: Any) -> None:
    types = ["chunked_attention", "full_attention", "chunked_attention"]
    base = workshop.base("llama4_text", layer_types=types, num_local_experts=2, intermediate_size_mlp=64)
    with pytest.raises(UnservedModel, match=r"Llama4ForCausalLM can't be served: it has layers of chunked_attention"):
        load(str(base.folder), torch.device("cpu"), torch.float32, 1)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [float(n) for n in range(1, 9)]}


def test_longrope_is_served_as_far_as_no_request_depends_on_its_company(workshop: Any) -> None:
    """Beyond, Transformers turns a whole batch by other frequencies as soon as one row is that long."""
    scaled = {"rope_parameters": LONGROPE | {"rope_theta": 1e4}, "original_max_position_embeddings": 64}
    base = workshop.base("phi3", **scaled)
    driver = workshop.engine(base, batch_tokens=256)
    assert driver.scheduler.context == 64
    with pytest.raises(PromptTooLong):
        driver.submit(workshop.prompt(60), max_tokens=5)
    prompts = [workshop.prompt(length) for length in (7, 54)]
    asked = [driver.submit(prompt, max_tokens=10) for prompt in prompts]
    driver.run()
    answers, logits = base.answers_and_logits(None, prompts, 10)
    assert [driver.tokens(sequence) for sequence in asked] == answers
    assert all(distance(driver.logits(s), theirs) < 1e-4 for s, theirs in zip(asked, logits, strict=True))


def test_dynamic_frequencies_stay_the_same_within_the_context(workshop: Any) -> None:
    scaled = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}
    base = workshop.base("llama", max_position_embeddings=64, **scaled)
    driver = workshop.engine(base)
    assert driver.scheduler.context == 64
    long, short = driver.submit(workshop.prompt(58), max_tokens=6), driver.submit(workshop.prompt(9), max_tokens=6)
    driver.run()
    for sequence in (long, short):
        assert [driver.tokens(sequence)] == base.answers(None, [sequence.prompt], 6)
