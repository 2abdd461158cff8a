"""Greedy tokens of a mixed batch equal those of Transformers and PEFT for each request alone, in float32."""

from typing import Any

import pytest
import torch

from tests.inference.conftest import distance

TOKENS = 10
ATTENTION = {"phi3": ["qkv_proj", "o_proj"], "": ["q_proj", "k_proj", "v_proj", "o_proj"]}
MLP = {
    "phi3": ["gate_up_proj", "down_proj"],
    "mixtral": ["v_proj", "o_proj"],
    "qwen2_moe": ["shared_expert.up_proj", "shared_expert.down_proj"],
    "": ["gate_proj", "up_proj", "down_proj"],
}
MIXTURES = ("mixtral", "qwen2_moe")
LENGTHS = (1, 5, 16, 17, 40, 75)  # the last two are prefilled in chunks: a step takes 48 tokens


def adapters_for(workshop: Any, base: Any, architecture: str) -> dict[str, Any]:
    """Four adapters of different ranks, targets, scalings and dtypes; of a mixture's experts none changes any."""
    attention, mlp = ATTENTION.get(architecture, ATTENTION[""]), MLP.get(architecture, MLP[""])
    everything = attention + mlp if architecture in MIXTURES else "all-linear"
    narrow = attention[:1] + attention[-1:]
    down = rf".*layers\.1\..*{mlp[-1]}"
    return {
        "attention": workshop.adapter(base, 1, r=4, lora_alpha=16, target_modules=attention, use_rslora=True),
        "everything": workshop.adapter(base, 2, r=16, lora_alpha=8, target_modules=everything),
        "patterns": workshop.adapter(
            base, 3, r=8, lora_alpha=8, target_modules=mlp, rank_pattern={down: 3}, alpha_pattern={down: 30}
        ),
        "bfloat16": workshop.adapter(base, 4, torch.bfloat16, r=2, lora_alpha=4, target_modules=narrow),
    }


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "mixtral", "qwen2_moe"]
)
def test_a_mixed_batch_answers_as_transformers_and_peft_do_alone(workshop: Any, architecture: str) -> None:
    base = workshop.base(architecture)
    adapters = adapters_for(workshop, base, architecture)
    prompts = [workshop.prompt(length) for length in LENGTHS]
    driver = workshop.engine(base, adapters, blocks=400, rows=32)

    asked = {
        (name, k): driver.submit(prompt, name, max_tokens=TOKENS)
        for k, prompt in enumerate(prompts)
        for name in ("", *adapters)
    }
    driver.run()

    assert max(driver.engine.steps_by_adapters) == len(adapters), "no step held rows of all adapters"
    told_apart = set()
    for name in ("", *adapters):
        expected, logits = base.answers_and_logits(adapters.get(name), prompts, TOKENS)
        assert [driver.tokens(asked[name, k]) for k in range(len(prompts))] == expected, name or "base"
        assert max(distance(driver.logits(asked[name, k]), logits[k]) for k in range(len(prompts))) < 1e-4, name
        told_apart.add(str(expected))
    assert len(told_apart) == 1 + len(adapters), "the adapters do not change the answers, so nothing was tested"


def test_answers_stay_the_same_through_prefix_hits_and_preemption(workshop: Any) -> None:
    base = workshop.base("llama")
    adapters = adapters_for(workshop, base, "llama")
    prompts = [workshop.prompt(40) + workshop.prompt(length, seed=1) for length in (3, 9, 27)]
    driver = workshop.engine(base, adapters, blocks=10)

    for name in ("", "attention", "everything"):
        expected = base.answers(adapters.get(name), prompts, 30)
        for _ in range(2):
            asked = [driver.submit(prompt, name, max_tokens=30) for prompt in prompts]
            driver.run()
            assert [driver.tokens(sequence) for sequence in asked] == expected

    assert driver.scheduler.preemptions > 0
    assert any(sequence.cached for sequence in driver.begun())


@torch.inference_mode()
def likelihoods(base: Any, adapter: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """The log-probability of each of the answer's tokens, by one pass of Transformers over the whole."""
    logits = base.oracle(adapter)(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chosen: list[float] = logits.log_softmax(-1)[range(len(answer)), answer].tolist()
    return chosen


def test_a_forced_answer_is_as_likely_as_transformers_and_peft_find_it(workshop: Any) -> None:
    base = workshop.base("llama")
    adapters = adapters_for(workshop, base, "llama")
    prompts = [workshop.prompt(length) for length in LENGTHS]
    answers = [[*workshop.prompt(9, seed=7), 2, *workshop.prompt(30, seed=8)][: 3 + 7 * k] for k in range(len(prompts))]
    driver = workshop.engine(base, adapters, blocks=10)  # few enough that some are preempted
    asked = {
        (name, k): driver.submit(prompt, name, forced=answers[k], max_tokens=len(answers[k]), logprobs=0)
        for k, prompt in enumerate(prompts)
        for name in ("", *adapters)
    }
    drawn = driver.submit(prompts[1], "everything", max_tokens=TOKENS)
    driver.run()

    for (name, k), sequence in asked.items():
        assert driver.tokens(sequence) == answers[k]
        expected = likelihoods(base, adapters.get(name), prompts[k], answers[k])
        assert driver.logprobs(sequence) == pytest.approx(expected, abs=2e-4), name or "base"
    assert driver.scheduler.preemptions > 0
    assert [driver.tokens(drawn)] == base.answers(adapters["everything"], prompts[1:2], TOKENS)


def test_a_requests_logits_are_bit_by_bit_the_same_alone_and_in_a_crowd(workshop: Any) -> None:
    """Those of a prefill, perhaps in chunks, and of the steps that decode."""
    base = workshop.base("qwen2")
    adapters = adapters_for(workshop, base, "qwen2") | {
        "dora": workshop.adapter(base, "alone-dora", r=4, target_modules="all-linear", use_dora=True),
        "lora-bias": workshop.adapter(base, "alone-bias", r=4, target_modules=["q_proj", "down_proj"], lora_bias=True),
    }
    prompts = {name: workshop.prompt(12 + 9 * k) for k, name in enumerate(("", *adapters))}
    crowd = workshop.engine(base, adapters, blocks=400, rows=32)
    together = {name: crowd.submit(prompt, name, max_tokens=5) for name, prompt in prompts.items()}
    for length, name in zip(LENGTHS, adapters, strict=True):
        crowd.submit(workshop.prompt(length), name, max_tokens=2)
    crowd.run()
    for name, prompt in prompts.items():
        alone = workshop.engine(base, adapters, blocks=400, rows=32)
        asked = alone.submit(prompt, name, max_tokens=5)
        alone.run()
        assert torch.equal(alone.logits(asked), crowd.logits(together[name])), name or "base"


def test_a_step_in_which_requests_end_counts_their_adapters_too(workshop: Any) -> None:
    base = workshop.base("qwen2")
    driver = workshop.engine(base, adapters_for(workshop, base, "qwen2"), blocks=400, rows=32)
    for name in ("attention", "everything"):
        driver.submit(workshop.prompt(5), name, max_tokens=1)
    driver.run()
    assert sum(adapters * steps for adapters, steps in driver.engine.steps_by_adapters.items()) == 2
