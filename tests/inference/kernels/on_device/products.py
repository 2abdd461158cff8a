"""One order of summing for products under Triton's interpreter. Knows the interpreter; nothing of any kernel.

The interpreter multiplies with NumPy, whose BLAS chooses its blocking, and with it the order in which it sums, by the
shapes and the processor. That a row's bits depend on nothing else in its batch is a law of the kernels alone, so it is
held bit by bit where the product is this one, and on hardware as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from tests.inference.kernels.on_device.cases import INTERPRETED


@contextmanager
def products_in_one_order() -> Iterator[None]:
    """Let `tl.dot` add its terms one by one, the first column's first; on a GPU nothing changes."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, sums: Any, input_precision: Any, imprecise: Any) -> Any:
        return TensorHandle(product(a.data, b.data, sums.data.dtype) + sums.data, sums.dtype.scalar)

    with patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield


def product(a: NDArray[Any], b: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """a [m, k] @ b [k, n] in `dtype`: each element's terms are rounded and added in the order of k."""
    total = np.zeros((a.shape[0], b.shape[1]), dtype)
    for k in range(a.shape[1]):
        total += a[:, k, None].astype(dtype) * b[None, k, :].astype(dtype)
    return total
