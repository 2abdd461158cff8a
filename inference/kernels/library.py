"""The compiled kernels, loaded once per process. Knows the C structs and calls; nothing of what they compute.

`library()` is `None` where there is no compiler: the torch reference then serves, after one warning.
`LORAYARD_CPU_ISA=avx512|avx2|portable` chooses the kernels; unset, the widest that the processor runs.
"""

import ctypes
import functools
import logging
import os
from ctypes import POINTER, c_char_p, c_float, c_int64, c_void_p
from typing import Any, cast

import torch  # loaded before the library, which then shares torch's OpenMP threads

from inference.kernels.build import BuildError, ensure

logger = logging.getLogger(__name__)

ops: Any = cast(Any, torch.library).Library("lorayard", "DEF")
"""Where the kernels define and implement their ops: `torch.ops.lorayard`."""


class CTable(ctypes.Structure):
    """`struct Table` of kernels.h."""

    _fields_ = [("pairs", c_void_p), ("inputs", c_int64), ("outputs", c_int64)]


class CSegments(ctypes.Structure):
    """`struct Segments` of kernels.h."""

    _fields_ = [("starts", c_void_p), ("ends", c_void_p), ("slots", c_void_p), ("count", c_int64)]


class CWeights(ctypes.Structure):
    """`struct Weights` of kernels.h."""

    _fields_ = [
        *[(name, c_void_p) for name in ("panels", "bias", "pairs")],
        *[(name, c_int64) for name in ("outputs", "dtype")],
    ]


class CLinear(ctypes.Structure):
    """`struct Linear` of kernels.h."""

    _fields_ = [("parts", c_void_p), ("count", c_int64), ("inputs", c_int64)]


class CAttention(ctypes.Structure):
    """`struct Attention` of kernels.h."""

    _fields_ = [
        *[(name, c_void_p) for name in ("out", "q")],
        *[(name, c_int64) for name in ("q_token", "q_head")],
        *[(name, c_void_p) for name in ("keys", "values")],
        *[(name, c_int64) for name in ("block", "token", "head")],
        ("tables", c_void_p),
        ("table_width", c_int64),
        ("starts", c_void_p),
        ("contexts", c_void_p),
        *[(name, c_int64) for name in ("sequences", "heads", "kv_heads", "dim", "block_size")],
        ("scale", c_float),
        ("window", c_int64),
        ("softcap", c_float),
    ]


class Library:
    """The C functions, with their types."""

    def __init__(self, path: str) -> None:
        loaded = ctypes.CDLL(path)
        self.sgmm = loaded.lorayard_sgmm
        self.sgmm.argtypes = [c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p]
        self.sgmm.restype = None
        self.linear = loaded.lorayard_linear
        self.linear.argtypes = [POINTER(c_void_p), c_void_p, c_int64, c_int64, c_void_p, c_void_p]
        self.linear.restype = None
        self.panel = loaded.lorayard_panel
        self.panel.argtypes = []
        self.panel.restype = c_int64
        self.attend = loaded.lorayard_attend
        self.attend.argtypes = [POINTER(CAttention)]
        self.attend.restype = None
        self.rms_norm = loaded.lorayard_rms_norm
        self.rms_norm.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_float]
        self.rms_norm.restype = None
        self.gated = loaded.lorayard_gated
        self.gated.argtypes = [c_void_p, c_void_p, c_int64, c_int64]
        self.gated.restype = None
        self.rotate = loaded.lorayard_rotate
        self.rotate.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64]
        self.rotate.restype = None
        self.store = loaded.lorayard_store
        self.store.argtypes = [
            *(c_void_p, c_int64, c_int64),
            *(c_void_p, c_int64, c_int64, c_int64),
            *(c_void_p, c_int64, c_int64, c_int64, c_int64),
        ]
        self.store.restype = None
        self._select = loaded.lorayard_select
        self._select.argtypes = [c_char_p]
        self._select.restype = c_char_p
        self.isa = self.select(os.environ.get("LORAYARD_CPU_ISA", ""))

    def select(self, isa: str) -> str:
        """Use the named kernels from now on, or the widest for "". Raises ValueError if this processor lacks them."""
        name: bytes | None = self._select(isa.encode())
        if name is None:
            raise ValueError(f"LORAYARD_CPU_ISA={isa}: not one of this processor's kernels")
        self.isa = name.decode()
        return self.isa


@functools.cache
def library() -> Library | None:
    """The library, compiled first if need be."""
    try:
        return Library(str(ensure()))
    except (BuildError, OSError) as error:
        logger.warning("no CPU kernels, the slower torch reference serves: %s", error)
        return None
