"""Knows what the engine is asked for a request; knows neither events nor answers."""

from collections.abc import Sequence
from dataclasses import replace

from gateway.authentication import Caller
from gateway.exchange import Exchange
from gateway.prompts import context_of
from gateway.schemas.request import Request
from inference.client import Generation
from registry.services import Target


def asked_of_engine(
    exchange: Exchange,
    caller: Caller,
    target: Target,
    prompts: Sequence[Sequence[int]],
    request: Request,
    forced: Sequence[int],
) -> list[Generation]:
    """Prompt by prompt, choice by choice. Choices of one prompt draw from seeds that follow one another."""
    sequences = []
    for prompt in prompts:
        room = context_of(target.base) - len(prompt)
        sampling = request.sampling(len(forced) or request.limit or min(request.default_limit, room))
        if forced:
            sampling = replace(sampling, forced=tuple(forced), ignore_eos=True)
        for choice in range(request.choices):
            seed = None if sampling.seed is None else (sampling.seed + choice) % 2**64
            sequences.append(
                Generation(
                    request_id=exchange.id,
                    prompt=prompt,
                    sampling=replace(sampling, seed=seed),
                    digest=target.digest,
                    share=caller.share,
                    weight=caller.tenant.weight,
                    salt=caller.salt,
                    priority=caller.priority,
                )
            )
    return sequences


def at_most(sequences: Sequence[Generation], choices: int) -> int:
    """Tokens that these can use. A prompt counts once, for all the answers that share it."""
    prompts = sum(len(sequence.prompt) for sequence in sequences[::choices])
    return prompts + sum(sequence.sampling.max_tokens for sequence in sequences)
