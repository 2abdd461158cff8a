"""What lies between a layer's products, against its slow twins, for every ISA that this processor runs."""

from typing import Any

import pytest
import torch

from inference.kernels import reference
from inference.kernels.pointwise import ACTS, Act, gated_, rms_norm, rotate_

CLOSE: dict[str, Any] = {"rtol": 2e-6, "atol": 1e-6}


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 5, 64), (200, 600)])
def test_norms_equal_their_twin(isa: str, shape: tuple[int, ...], offset: float) -> None:
    x, weight = 3 * torch.randn(shape), torch.randn(shape[-1])
    torch.testing.assert_close(rms_norm(x, weight, 1e-6, offset), reference.rms_norm(x, weight, 1e-6, offset), **CLOSE)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("count", [1, 37, 70_000])
def test_gates_equal_their_twin(isa: str, count: int, act: Act) -> None:
    gate, up = 20 * torch.randn(count), torch.randn(count)
    gate[0] = -200.0
    expected = reference.gated_(gate.clone(), up, act)
    torch.testing.assert_close(gated_(gate, up, act), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dim", "turned"), [(2, 2), (64, 64), (80, 40), (6, 6)])
def test_rotations_equal_their_twin_and_leave_the_rest(isa: str, dim: int, turned: int) -> None:
    x, cos, sin = torch.randn(50, 3, dim), torch.randn(50, turned), torch.randn(50, turned)
    expected = reference.rotate_(x.clone(), cos, sin)
    assert torch.equal(expected[..., turned:], x[..., turned:])
    torch.testing.assert_close(rotate_(x.clone(), cos, sin), expected, **CLOSE)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(rotate_(strided, cos, sin), expected, **CLOSE)


def test_a_row_is_the_same_in_any_batch(isa: str) -> None:
    x, weight = torch.randn(400, 300), torch.randn(300)
    assert torch.equal(rms_norm(x, weight, 1e-6, 0.0)[7], rms_norm(x[7:8], weight, 1e-6, 0.0)[0])
