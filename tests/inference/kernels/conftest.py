"""Runs a kernel test once for each ISA that this processor has."""

from collections.abc import Iterator

import pytest
import torch

from inference.kernels.build import ISAS
from inference.kernels.library import library


@pytest.fixture(params=list(ISAS))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    native = library()
    assert native is not None, "these tests need a C++ compiler"
    before = native.isa
    try:
        native.select(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    native.select(before)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
