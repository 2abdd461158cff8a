"""Launches what lies between a layer's products on a GPU. Knows shapes and strides; never what a program does.

Tested under Triton's interpreter, and it compiles for sm_80 and sm_90; it has not run on hardware.
"""

import torch
import triton
from torch import Tensor

from inference.kernels.gpu import pointwise_kernels as kernels

NUMBERS = 1024  # of a gate, a program
TURNED = 2048  # numbers of a token's heads, a program


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    """As `pointwise.rms_norm`; x of any strides but a unit one along the last dimension, the result contiguous."""
    width = x.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() != 3 or x.shape[0] == 1:
        x = x.reshape(-1, width)[:, None]
    assert weight.shape == (width,)
    assert x.stride(2) == weight.stride(0) == 1
    block = triton.next_power_of_2(width)
    kernels.rms_norm[(x.shape[0] * x.shape[1],)](
        *(y, x, *x.stride()[:2], x.shape[1], weight, width, eps, offset),
        W=block,
        num_warps=min(16, max(1, block // 512)),
    )
    return y


def gated_(gate: Tensor, up: Tensor, silu: bool) -> Tensor:
    """As `pointwise.gated_`; rows of any stride, unit strides along them."""
    width = gate.shape[-1]
    assert gate.shape == up.shape
    gates, ups = gate.view(-1, width), up.view(-1, width)
    assert gates.stride(1) == ups.stride(1) == 1
    grid = (gates.shape[0], triton.cdiv(width, NUMBERS))
    kernels.gated[grid](gates, gates.stride(0), ups, ups.stride(0), width, SILU=silu, N=NUMBERS)
    return gate


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `pointwise.rotate_`; x of any strides but a unit one along the last dimension."""
    tokens, heads, dim = x.shape
    turned = cos.shape[1]
    assert cos.shape == sin.shape == (tokens, turned)
    assert cos.stride() == sin.stride() == (turned, 1)
    assert turned % 2 == 0
    assert turned <= dim
    assert x.stride(2) == 1
    width = triton.next_power_of_2(turned // 2)
    together = min(triton.next_power_of_2(heads), max(1, TURNED // (2 * width)))
    grid = (tokens, triton.cdiv(heads, together))
    kernels.rotate[grid](x, *x.stride()[:2], cos, sin, turned, heads, turned // 2, H=together, D=width)
    return x
