"""Knows how rows go through another version of a module than the base's; never which adapter's it is."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inference.lora.linear import Batch


def twin(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """The same module with some parameters replaced. It shares the others, and has no hooks."""
    made = copy.copy(module)
    made._parameters = module._parameters.copy()
    for name, tensor in parameters.items():
        made._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    made._forward_hooks = OrderedDict()
    return made


class Replaced:
    """A module over whole rows (a norm, a router) that some slots have a version of. While none has, the module is
    untouched."""

    def __init__(self, module: nn.Module, batch: Batch) -> None:
        self._module = module
        self._batch = batch
        self._twins: dict[int, nn.Module] = {}
        self._hook: RemovableHandle | None = None

    def set(self, slot: int, parameters: Mapping[str, Tensor]) -> None:
        self._twins[slot] = twin(self._module, parameters)
        if self._hook is None:
            self._hook = self._module.register_forward_hook(self._run)

    def clear(self, slot: int) -> None:
        self._twins.pop(slot, None)
        if self._hook is not None and not self._twins:
            self._hook.remove()
            self._hook = None

    def _run(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        x = inputs[0]
        rows = x.reshape(-1, x.shape[-1])
        ys = [y.view(-1, y.shape[-1]) for y in _all(output)]
        for start, end, slot in self._batch.segments:
            if slot in self._twins:
                for y, own in zip(ys, _all(self._twins[slot](rows[start:end])), strict=True):
                    y[start:end] = own


def _all(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
