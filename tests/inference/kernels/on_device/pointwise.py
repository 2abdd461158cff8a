"""The GPU's norms, gates and rotations against their slow twins: under Triton's interpreter, or on a GPU.

`test_gpu_layer.py` runs this file in a process of its own, since the interpreter is chosen before triton is imported.
"""

import os

import pytest
import torch

from inference.kernels import reference
from inference.kernels.gpu import pointwise as gpu
from inference.kernels.pointwise import ACTS, Act

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLOSE = {torch.float32: (2e-6, 1e-6), torch.bfloat16: (8e-3, 1e-6), torch.float16: (1e-3, 1e-6)}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(shape)).to(DEVICE, dtype)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    rtol, atol = CLOSE[got.dtype]
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 5, 64), (4, 3, 40), (2, 600)])
def test_norms_equal_their_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(*shape, dtype=dtype), random(shape[-1], dtype=dtype)
    for offset in (0.0, 1.0):
        close(gpu.rms_norm(x, weight, 1e-6, offset), reference.rms_norm(x, weight, 1e-6, offset))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTS)
def test_gates_equal_their_twin(act: Act, dtype: torch.dtype) -> None:
    for rows, width in ((1, 1), (3, 37), (2, 1030)):
        gate, up = 20 * random(rows, width, dtype=dtype), random(rows, width, dtype=dtype)
        gate[0, 0] = -200.0
        expected = reference.gated_(gate.clone(), up, act)
        rtol = 1e-5 if dtype is torch.float32 else CLOSE[dtype][0]
        torch.testing.assert_close(gpu.gated_(gate, up, act == "silu"), expected, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim", "turned"), [(1, 2, 2), (3, 64, 64), (5, 80, 40), (40, 128, 128)])
def test_rotations_equal_their_twin_and_leave_the_rest(heads: int, dim: int, turned: int, dtype: torch.dtype) -> None:
    x, cos, sin = (random(*shape, dtype=dtype) for shape in ((3, heads, dim), (3, turned), (3, turned)))
    expected = reference.rotate_(x.clone(), cos, sin)
    rtol, atol = CLOSE[dtype]
    torch.testing.assert_close(gpu.rotate_(x, cos, sin), expected, rtol=rtol, atol=max(10 * atol, rtol))


def test_slices_of_a_wider_product_are_read_and_written_in_place() -> None:
    wide = random(4, 48 + 32 + 16)
    before, weight = wide.clone(), random(16)
    heads = wide[:, 48:80].view(4, 2, 16)
    close(gpu.rms_norm(heads, weight, 1e-6, 0.0), reference.rms_norm(heads, weight, 1e-6, 0.0))
    cos, sin = random(4, 16), random(4, 16)
    gpu.rotate_(heads, cos, sin)
    gpu.gated_(wide[None, :, :16], wide[None, :, 32:48], True)
    expected = before.clone()
    reference.rotate_(expected[:, 48:80].view(4, 2, 16), cos, sin)
    reference.gated_(expected[:, :16], expected[:, 32:48], "silu")
    torch.testing.assert_close(wide, expected, rtol=1e-5, atol=2e-5)


def test_a_row_is_the_same_in_any_batch() -> None:
    x, weight = random(9, 300), random(300)
    assert torch.equal(gpu.rms_norm(x, weight, 1e-6, 0.0)[7], gpu.rms_norm(x[7:8], weight, 1e-6, 0.0)[0])
