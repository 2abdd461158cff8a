"""How a small model learns fast on a CPU: its birth, the optimiser, the loop, and greedy answers; knows no tasks."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.skills import Conversation
from demo.text import CONTEXT, IGNORED, Batch

HEAD = 32
OFFSETS = (1, 2, 3, 1, 2, 4)


def newborn(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random Llama of 1.8 million parameters whose first layer already looks back a few tokens.

    Llama, since Transformers reads its tokenizer as saved; for Qwen2 it puts its own way of splitting text in place.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HEAD * len(OFFSETS),
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=len(OFFSETS),
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            attention_bias=True,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    look_back(model.model.layers[0].self_attn)
    return model


@torch.no_grad()
def look_back(attention: Any, strength: float = 6.0, pairs: int = 6) -> None:
    """Biases that make head h attend OFFSETS[h] tokens back, whatever the tokens are.

    Copying needs a layer that carries each token to its successor (Olsson et al., 2022, "In-context learning and
    induction heads"); found by chance it costs most of the training, given at birth it costs nothing. With rotary
    positions a constant key u and a constant query u turned by -n meet best at distance n.
    """
    half = HEAD // 2
    turns = 10000.0 ** (-torch.arange(half) / half)
    loud = torch.where(torch.arange(half) < pairs, strength, 0.0)
    attention.k_proj.bias.view(-1, HEAD)[:, :half] = loud
    for query, n in zip(attention.q_proj.bias.view(-1, HEAD), OFFSETS, strict=True):
        query[:half] = loud * torch.cos(n * turns)
        query[half:] = -loud * torch.sin(n * turns)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan, 2024), for matrices; torch's own computes in bfloat16, a crawl on many CPUs."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - momentum)
                p.mul_(1 - lr * group["decay"])
                p.sub_(orthogonal(p.grad.lerp(mean, momentum)), alpha=lr * math.sqrt(max(1, p.shape[0] / p.shape[1])))


def orthogonal(g: Tensor) -> Tensor:
    """About the orthogonal matrix nearest to g, by five quintic Newton-Schulz steps."""
    wide = g.shape[0] <= g.shape[1]
    x: Tensor = g if wide else g.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (2.0315 * s @ s - 4.7750 * s) @ x
    return x if wide else x.T


def base_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name}
    outer = [p for name, p in model.named_parameters() if name not in inner]
    return [Muon(inner.values(), lr=0.02), torch.optim.AdamW(outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)]


def learn(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    data: Iterator[Batch],
    steps: int,
    seen: Callable[[float], None],
) -> None:
    """`steps` steps: a short rise, a plateau, a long fall to nothing; `seen` hears each step's loss."""
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(opt, lambda i: min((i + 1) / 30, 1.0, 1.6 * (1 - i / steps)))
        for opt in optimizers
    ]
    model.train()
    for _ in range(steps):
        batch = next(data)
        logits = model(input_ids=batch.ids, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt, schedule in zip(optimizers, schedules, strict=True):
            opt.step()
            schedule.step()
            opt.zero_grad()
        seen(loss.item())


@torch.no_grad()
def answers(model: Any, tokenizer: Any, talks: Sequence[Conversation], limit: int = 96, rows: int = 50) -> list[str]:
    """Greedy answers to conversations that end with a user's message."""
    model.eval()
    found: list[str] = []
    for start in range(0, len(talks), rows):
        inputs = tokenizer.apply_chat_template(
            list(talks[start : start + rows]), add_generation_prompt=True, padding=True,
            return_tensors="pt", return_dict=True,
        )  # fmt: skip
        output = model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        found += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found
