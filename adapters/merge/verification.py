"""Knows whether a merged checkpoint answers as its adapter does on the base; never how it was merged.

Both run the same sampled prompts in float32 on the CPU, the merged one from its files alone, the other from the base's
files with the adapter beside each module as PEFT computes it: y = W x + scale * B (A x). What differs then is what
rounding the merged weights to their dtype did. Weights come from disk as they are needed and go again, linears' in
blocks of rows, so that the check takes no more memory than the merge; but the experts that Transformers joins into one
parameter are read together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from adapters.base import BaseSpec, is_embedding, is_transposed
from adapters.errors import Unfaithful, Unmergeable
from adapters.merge.changes import Change, Changes
from adapters.merge.checkpoint import Checkpoint, Fused, Stored
from adapters.merge.writing import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCES: Final[Mapping[str, float]] = {"F32": 1e-4, "F16": 5e-3, "BF16": 3e-2}
"""By the dtype of the merged tensors: how far the logits may lie apart (root of the mean square), as a part of their
own standard deviation. Rounding a weight to bfloat16 changes it by up to 1/512, to float16 by 1/4096."""

PROMPTS, LENGTH, SEED = 4, 16, 0


@dataclass(frozen=True)
class Agreement:
    """`deviation`: the root mean square of the logits' differences over their standard deviation; `effect`: the same
    between the adapter and the bare base. `same_tokens`: at how many of `positions` the likeliest token is the same."""

    deviation: float
    tolerance: float
    effect: float
    same_tokens: int
    positions: int


def verify(
    merged: Checkpoint, own: Checkpoint, changes: Changes, base: BaseSpec, dtype: str, progress: Progress = silent
) -> Agreement:
    """Compare `merged` with `changes` on `own`; `dtype` is that of the merged tensors. Raises Unfaithful."""
    import torch

    prompts = _prompts(base)
    with torch.inference_mode():
        asked = Streamed(own, changes, progress).logits(prompts)
        got = Streamed(merged, None, progress).logits(prompts)
        bare = Streamed(own, None, progress).logits(prompts)
        spread = float(asked.std())
        agreement = Agreement(
            deviation=float((got - asked).square().mean().sqrt()) / spread,
            tolerance=TOLERANCES[dtype],
            effect=float((bare - asked).square().mean().sqrt()) / spread,
            same_tokens=int((got.argmax(-1) == asked.argmax(-1)).sum()),
            positions=prompts.numel(),
        )
    if not agreement.deviation <= agreement.tolerance:  # NaN is no agreement
        message = "The merged model does not answer as the adapter does; nothing is kept. Tell the operator."
        found = f"{agreement.deviation:.3g}"
        raise Unfaithful("unfaithful", message, expected=f"at most {agreement.tolerance:g}", found=found)
    return agreement


def _prompts(base: BaseSpec) -> Tensor:
    """Token ids [PROMPTS, LENGTH], drawn from the whole vocabulary; always the same."""
    import torch

    drawn = torch.Generator().manual_seed(SEED)
    return torch.randint(base.vocab_size, (PROMPTS, min(LENGTH, base.context_length)), generator=drawn)


class Streamed:
    """A model that reads its weights while it computes, and keeps none. Its modules are Transformers' own."""

    def __init__(self, checkpoint: Checkpoint, changes: Changes | None, progress: Progress) -> None:
        self._checkpoint = checkpoint
        self._changes = changes
        self._progress = progress
        self._model = checkpoint.model

    def logits(self, tokens: Tensor) -> Tensor:
        """Float32 [prompts, length, vocabulary] for token ids [prompts, length]."""
        _fill_buffers(self._model)
        undo = [action for name, module in self._model.named_modules() for action in self._attach(name, module)]
        try:
            logits: Tensor = self._model.float().train(False)(input_ids=tokens, use_cache=False).logits
            return logits
        finally:
            for action in undo:
                action()

    def _attach(self, name: str, module: Any) -> Iterator[Any]:
        """Have the module's weights read when it is called. Yields what takes that back."""
        from torch import nn

        own = [name_ for name_, _ in module.named_parameters(recurse=False)] + _persistent(module)
        if type(module) is nn.Linear or is_transposed(module):
            compute = self._transposed if is_transposed(module) else self._linear
            module.__dict__["forward"] = partial(compute, name, module)
            yield partial(module.__dict__.pop, "forward")
        elif own:
            read = self._gather if is_embedding(module) else self._read
            before = dict(module._parameters), dict(module._buffers)
            yield module.register_forward_pre_hook(partial(read, name, own)).remove
            yield module.register_forward_hook(partial(_put_back, before)).remove

    def _linear(self, name: str, module: Any, x: Tensor) -> Tensor:
        """What nn.Linear computes, with the adapter's part beside it."""
        import torch

        stored, change = self._stored(f"{name}.weight"), self._change(f"{name}.weight")
        low = None
        if change.pair is not None:
            low = x @ self._tensor(change.pair.a).T
        parts = [self._rows(stored, f"{name}.weight", change, x, low, *bounds) for bounds in stored.blocks()]
        y = torch.cat(parts, dim=-1)
        return y if module.bias is None else y + self._vector(f"{name}.bias")

    def _rows(
        self, stored: Stored, parameter: str, change: Change, x: Tensor, low: Tensor | None, start: int, stop: int
    ) -> Tensor:
        """The outputs [start, stop) of a linear, without bias."""
        own = self._block(stored, parameter, start, stop)
        y = x @ own.T
        if self._changes is not None and change.pair is not None and low is not None:
            y = y + change.pair.scale * (low @ self._changes.tensor(change.pair.b, start, stop).T)
            if change.pair.magnitude:
                y = y * self._changes.norms(change.pair, own, start, stop)
        return y

    def _transposed(self, name: str, module: Any, x: Tensor) -> Tensor:
        """What Conv1D computes, with the adapter's part beside it: as `_linear`, with the weight [in, out]."""
        stored, change = self._stored(f"{name}.weight"), self._change(f"{name}.weight")
        y = sum(
            x[..., start:stop] @ self._block(stored, f"{name}.weight", start, stop) for start, stop in stored.blocks()
        )
        if self._changes is not None and change.pair is not None:
            y = y + change.pair.scale * (x @ self._tensor(change.pair.a).T @ self._tensor(change.pair.b).T)
            if change.pair.magnitude:
                y = y * self._changes.column_factor(f"{name}.weight", stored)
        biased: Tensor = y + self._vector(f"{name}.bias")
        return biased

    def _block(self, stored: Stored, parameter: str, start: int, stop: int) -> Tensor:
        """Rows of a weight before any pair."""
        self._progress("verifying", (stop - start) * stored.nbytes // stored.rows)
        if self._changes is None:
            return stored.read(start, stop).float()
        return self._changes.own(parameter, stored, start, stop)

    def _gather(self, name: str, own: list[str], module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Only the rows of the embedding that are asked for, and the ids changed to fit."""
        import torch

        parameter = f"{name}.weight"
        ids, places = arguments[0].unique(return_inverse=True)
        stored = self._stored(parameter)
        rows = [self._values(parameter, stored, int(row), int(row) + 1) for row in ids]
        module._parameters["weight"] = torch.nn.Parameter(torch.cat(rows), requires_grad=False)
        return (places, *arguments[1:])

    def _read(self, name: str, own: list[str], module: Any, arguments: tuple[Any, ...]) -> None:
        import torch

        for each in own:
            value = self._vector(f"{name}.{each}" if name else each)
            if each in module._parameters:
                module._parameters[each] = torch.nn.Parameter(value, requires_grad=False)
            else:
                module._buffers[each] = value

    def _vector(self, parameter: str) -> Tensor:
        """A parameter whole."""
        source = self._checkpoint.source(parameter)
        if isinstance(source, Fused):
            value = source.read(parameter, self._model).float()
            if self._changes is not None and (pairs := self._change(parameter).experts) is not None:
                for expert in range(pairs.experts):
                    self._changes.add_expert(value[expert], pairs, expert)
            return value
        stored = self._stored(parameter)
        return self._values(parameter, stored, 0, stored.rows)

    def _values(self, parameter: str, stored: Stored, start: int, stop: int) -> Tensor:
        if self._changes is None:
            return stored.read(start, stop).float()
        return self._changes.rows(parameter, stored, start, stop)

    def _stored(self, parameter: str) -> Stored:
        stored = self._checkpoint.alone(parameter)
        if stored is None:
            message = f"{parameter} can't be read by itself from the base's files, so the merge can't be verified."
            raise Unmergeable("fused-tensor", message, tensor=parameter)
        return stored

    def _change(self, parameter: str) -> Change:
        return Change() if self._changes is None else self._changes.parameters.get(parameter, Change())

    def _tensor(self, name: str) -> Tensor:
        assert self._changes is not None
        return self._changes.tensor(name)


def _persistent(module: Any) -> list[str]:
    return [name for name in module._buffers if name not in module._non_persistent_buffers_set]


def _put_back(before: tuple[dict[str, Any], dict[str, Any]], module: Any, arguments: Any, output: Any) -> None:
    parameters, buffers = before
    module._parameters.update(parameters)
    module._buffers.update({name: buffers[name] for name in _persistent(module)})


def _fill_buffers(model: Any) -> None:
    """What a model computes for itself (rotary frequencies): on the meta device it has only the shapes of it."""
    import torch

    for module in model.modules():
        names = [name for name, value in module._buffers.items() if value is not None and value.is_meta]
        for name in names:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if names:
            model._init_weights(module)
