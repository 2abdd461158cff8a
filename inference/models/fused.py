"""Knows what parts of Transformers' models are run in fewer, larger calls; never sequences or adapters.

Every part is proved before it is used: it must give what the library's own module gives, on random input, or that one
stays. The proof is in float32, whatever the model's dtype: in a narrow one they differ by where they round. A fused
part keeps its module's parameters, hooks and linears; only its `forward` is another.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from inference.kernels.library import library
from inference.kernels.operands import DTYPES
from inference.kernels.pointwise import ACTS, gated_, rms_norm, rotate_
from inference.lora.linear import LoraLinear

ROTARY = frozenset({"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Qwen2MoeAttention"})
"""Attention classes that do nothing with a position but rotate: what no trial at small positions could prove."""


class Norm:
    """settings: epsilon, and what is added to the weight."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, *self.settings)


class GatedMlp:
    """settings: the activation."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(gated_(self.gate_proj(x), self.up_proj(x), self.settings))
        return y


class RotaryAttention:
    """Projections, norms of the heads if there are any, rotation, and the paged cache."""

    def forward(
        self: Any, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], *_: object, **__: object
    ) -> tuple[Tensor, None]:
        heads = (-1, self.head_dim)
        tokens = hidden_states.shape[1]
        query = self.q_proj(hidden_states).view(tokens, *heads)
        key = self.k_proj(hidden_states).view(tokens, *heads)
        value = self.v_proj(hidden_states).view(tokens, *heads)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        cos, sin = position_embeddings[0][0], position_embeddings[1][0]
        rotate_(query, cos, sin)
        rotate_(key, cos, sin)
        window = getattr(self, "sliding_window", None) or 0
        out = self.lorayard_cache.attend(self.layer_idx, query, key, value, self.scaling, window, 0.0)
        return self.o_proj(out.view(1, tokens, -1)), None


def fuse(network: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """Fuse what can be; `run` is a forward pass that shows how modules are called. How many of each class were."""
    fused: Counter[str] = Counter()
    if not _served(network):
        return fused
    calls = _attention_calls(network, run)
    for module in network.modules():
        for part, settings, trial in _offers(module, calls):
            if _proved(module, part, settings, trial):
                _become(module, part, settings)
                fused[part.__name__] += 1
                break
    return fused


def _served(network: nn.Module) -> bool:
    """Whether there are kernels for it: in float32 on a CPU, in any of their dtypes on a GPU, quantised nowhere."""
    parameters = list(network.parameters())
    if any(type(parameter) is not nn.Parameter for parameter in parameters):
        return False
    if all(parameter.is_cuda for parameter in parameters):
        return all(parameter.dtype in DTYPES for parameter in parameters)
    return library() is not None and all(p.is_cpu and p.dtype is torch.float32 for p in parameters)


Trial = Callable[[nn.Module], list[Tensor]]
"""What a module gives for some fixed random input."""


def _offers(module: Any, calls: dict[nn.Module, dict[str, Any]]) -> Iterator[tuple[type, Any, Trial]]:
    if type(module).__name__.endswith("RMSNorm") and list(dict(module.named_parameters())) == ["weight"]:
        x = _random(1, 3, module.weight.shape[0], device=module.weight.device)
        epsilon = getattr(module, "variance_epsilon", None) or getattr(module, "eps", None)
        for offset in (0.0, 1.0) if epsilon else ():
            yield Norm, (epsilon, offset), lambda m: [m(x)]
    elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        if isinstance(module.gate_proj, LoraLinear):
            wide = _random(1, 3, module.gate_proj.table.inputs, device=module.gate_proj.weight.device)
            for act in ACTS:
                yield GatedMlp, act, lambda m: [m(wide)]
    elif type(module).__name__ in ROTARY and module in calls:
        yield RotaryAttention, None, _attention_trial(calls[module])


def _proved(module: nn.Module, part: type, settings: Any, trial: Trial) -> bool:
    before = module.__class__
    with _widened(module):
        own = trial(module)
        _become(module, part, settings)
        given = trial(module)
    module.__class__ = before
    return len(own) == len(given) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(own, given, strict=True)
    )


@contextmanager
def _widened(module: nn.Module) -> Iterator[None]:
    """With parameters in float32, which holds any narrower one exactly, and then with its own again."""
    kept = [(owner, dict(owner._parameters)) for owner in module.modules()]
    for owner, own in kept:
        wide = {name: p if p is None else nn.Parameter(p.float(), requires_grad=False) for name, p in own.items()}
        owner._parameters.update(wide)
    yield
    for owner, own in kept:
        owner._parameters.update(own)


def _become(module: Any, part: type, settings: Any) -> None:
    module.settings = settings
    module.__class__ = type(f"Fused{type(module).__name__}", (part, type(module)), {})


def _attention_calls(network: nn.Module, run: Callable[[], object]) -> dict[nn.Module, dict[str, Any]]:
    """With what each attention module was called by name, if by name alone."""
    calls: dict[nn.Module, dict[str, Any]] = {}

    def note(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not positional:
            calls[module] = named

    attentions = [module for module in network.modules() if type(module).__name__ in ROTARY]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in attentions]
    run()
    for hook in hooks:
        hook.remove()
    return calls


def _attention_trial(call: dict[str, Any]) -> Trial:
    device = call["hidden_states"].device
    hidden = _random(*call["hidden_states"].shape, device=device)
    turns = tuple(_random(*table.shape, device=device) for table in call["position_embeddings"])

    def trial(module: Any) -> list[Tensor]:
        own, module.lorayard_cache = module.lorayard_cache, _Recorder()
        y, _ = module(**{**call, "hidden_states": hidden, "position_embeddings": turns})
        seen, module.lorayard_cache = module.lorayard_cache.seen, own
        return [y, *seen]

    return trial


class _Recorder:
    """In the place of a cache: keeps what it was asked, and answers with numbers that depend on nothing else."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int, softcap: float
    ) -> Tensor:
        numbers = torch.tensor([layer, scale, window, softcap], device=query.device)
        self.seen = [query.clone(), key.clone(), value.clone(), numbers]
        return _random(query.shape[0], query.shape[1], value.shape[2], device=query.device)


def _random(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device)
