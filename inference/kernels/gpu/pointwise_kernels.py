# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""What lies between a layer's products, what runs on the device. Knows one row; never the step or torch.

Numbers are widened to float32, and the result is rounded once to the output's dtype. A row's result depends on that
row alone. Every integer here is the model's but the grid, so nothing is compiled anew from step to step.
"""

import triton
import triton.language as tl


@triton.jit
def rms_norm(y, x, x_outer, x_inner, inner, weight, width, eps, offset, W: tl.constexpr):
    """y[row] = x[row] / sqrt(mean(x[row] ** 2) + eps) * (weight + offset), y contiguous; a program takes a row."""
    row = tl.program_id(0).to(tl.int64)
    w = tl.arange(0, W)
    inside = w < width
    numbers = tl.load(x + row // inner * x_outer + row % inner * x_inner + w, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(weight + w, mask=inside, other=0.0).to(tl.float32) + offset
    scale = 1.0 / tl.sqrt(tl.sum(numbers * numbers, 0) / width + eps)
    tl.store(y + row * width + w, (numbers * scale * weights).to(y.dtype.element_ty), mask=inside)


@triton.jit
def gated(gate, gate_row, up, up_row, width, SILU: tl.constexpr, N: tl.constexpr):
    """gate[row] = act(gate[row]) * up[row], N numbers a program; both acts are x times a sigmoid."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * N + tl.arange(0, N)
    inside = n < width
    numbers = tl.load(gate + row * gate_row + n, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + row * up_row + n, mask=inside, other=0.0).to(tl.float32)
    if SILU:  # noqa: SIM108 - a choice that the compiler makes
        inner = numbers
    else:
        inner = 1.5957691216057308 * (numbers + 0.044715 * numbers * numbers * numbers)
    done = numbers * tl.sigmoid(inner) * ups
    tl.store(gate + row * gate_row + n, done.to(gate.dtype.element_ty), mask=inside)


@triton.jit
def rotate(x, x_token, x_head, cos, sin, turn, heads, half, H: tl.constexpr, D: tl.constexpr):
    """Turn 2 * half numbers of H heads of one token, in place."""
    token = tl.program_id(0).to(tl.int64)
    h, d = tl.program_id(1) * H + tl.arange(0, H), tl.arange(0, D)
    inside = d < half
    mask = (h < heads)[:, None] & inside[None, :]
    at = x + token * x_token + h[:, None] * x_head + d[None, :]
    low = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(at + half, mask=mask, other=0.0).to(tl.float32)
    turned = token * turn + d
    cos_low = tl.load(cos + turned, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + turned, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + turned + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + turned + half, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(at, (low * cos_low - high * sin_low).to(x.dtype.element_ty), mask=mask)
    tl.store(at + half, (high * cos_high + low * sin_high).to(x.dtype.element_ty), mask=mask)
