"""What lies between a layer's products, one call each: C++ for float32 on a CPU, Triton on a GPU.

    rms_norm(x, weight, eps, offset)   x / sqrt(mean(x**2) + eps) * (weight + offset), over the last dimension
    gated_(gate, up, act)              gate = act(gate) * up, act `silu` or `gelu_tanh`
    rotate_(x, cos, sin)               rotary embedding, in place: x [tokens, heads, dim], cos and sin [tokens, turned]

Each row's result is the same in whichever batch it is; of narrow dtypes it is computed in float32 and rounded once.
"""

from typing import Literal

import torch
from torch import Tensor

from inference.kernels import reference
from inference.kernels.library import Library, library
from inference.kernels.operands import DTYPES

Act = Literal["silu", "gelu_tanh"]
ACTS: tuple[Act, ...] = ("silu", "gelu_tanh")


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    if _on_gpu(x, weight):
        from inference.kernels.gpu import pointwise as gpu  # the CPU never pays for triton

        return gpu.rms_norm(x, weight, eps, offset)
    native = _native(x, weight)
    if native is None:
        return reference.rms_norm(x, weight, eps, offset)
    width = x.shape[-1]
    assert weight.shape == (width,)
    y = torch.empty_like(x)
    native.rms_norm(y.data_ptr(), x.data_ptr(), weight.data_ptr(), x.numel() // width, width, eps, offset)
    return y


def gated_(gate: Tensor, up: Tensor, act: Act) -> Tensor:
    if _on_gpu(gate, up):
        from inference.kernels.gpu import pointwise as gpu  # the CPU never pays for triton

        return gpu.gated_(gate, up, act == "silu")
    native = _native(gate, up)
    if native is None:
        return reference.gated_(gate, up, act)
    assert gate.shape == up.shape
    native.gated(gate.data_ptr(), up.data_ptr(), gate.numel(), ACTS.index(act))
    return gate


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if _on_gpu(x, cos, sin):
        from inference.kernels.gpu import pointwise as gpu  # the CPU never pays for triton

        return gpu.rotate_(x, cos, sin)
    native = _native(x, cos, sin)
    if native is None:
        return reference.rotate_(x, cos, sin)
    tokens, heads, dim = x.shape
    assert cos.shape == sin.shape
    assert cos.shape[0] == tokens
    assert cos.shape[1] <= dim
    native.rotate(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), tokens, heads, dim, cos.shape[1])
    return x


def _on_gpu(*tensors: Tensor) -> bool:
    return all(tensor.is_cuda and tensor.dtype in DTYPES for tensor in tensors)


def _native(*tensors: Tensor) -> Library | None:
    served = all(t.is_cpu and t.dtype is torch.float32 and t.is_contiguous() for t in tensors)
    return library() if served else None
