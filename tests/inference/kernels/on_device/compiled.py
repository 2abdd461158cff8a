"""Compiles every kernel for GPUs that need not be there: python compiled.py. Numerics are the other files'.

For the newest every shape, for the oldest one of each kernel.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from inference.kernels.gpu import attention_kernels, pointwise_kernels, sgmm_kernels
from inference.kernels.gpu.sgmm import SHAPES

POINTERS = {"pairs": "*i64", "tiles": "*i32", "bridge": "*fp32", "slots": "*i64"} | dict.fromkeys(
    ("tables", "starts", "contexts", "columns"), "*i32"
)
FLOATS = ("scale", "softcap", "eps", "offset")
ROWS = ("x", "y", "out", "q", "keys", "values", "rows", "cache", "weight", "gate", "up", "cos", "sin")


def build(kernel: Any, target: GPUTarget, dtype: str, **constants: Any) -> None:
    names = kernel.arg_names
    types = (
        {name: "i32" for name in names} | POINTERS | dict.fromkeys(FLOATS, "fp32") | dict.fromkeys(ROWS, f"*{dtype}")
    )
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    made = triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 4})
    shared = made.metadata.shared
    assert shared <= 99 * 1024, f"{kernel.__name__} asks for {shared} bytes of shared memory"
    print(kernel.__name__, target.arch, dtype, constants, f"{len(made.asm['cubin'])} bytes, {shared} shared")


def main(arch: int, most: int) -> None:
    target = GPUTarget("cuda", arch, 32)
    for family, shape in list(SHAPES.items())[-most:]:
        same = {"M": int(family), "R": shape.ranks, "SPLITS": 4, "PRECISION": "tf32", "NATIVE": True}
        build(sgmm_kernels.shrink, target, "bf16", K=shape.inputs, **same)
        build(sgmm_kernels.expand, target, "bf16", N=shape.outputs, JOINT=True, **same)
    for tokens, heads in ((1, 16), (16, 4))[-most:]:
        sizes = {"BLOCK": 16, "T": tokens, "H": heads, "N": 64, "D": 128, "V": 128, "WINDOWED": True, "CAPPED": True}
        build(attention_kernels.attend, target, "bf16", PRECISION="tf32", NATIVE=True, **sizes)
    build(attention_kernels.store, target, "bf16", BLOCK=16, H=8, D=128)
    build(pointwise_kernels.rms_norm, target, "bf16", W=4096)
    build(pointwise_kernels.gated, target, "bf16", SILU=False, N=1024)
    build(pointwise_kernels.rotate, target, "bf16", H=16, D=64)


if __name__ == "__main__":
    main(90, most=len(SHAPES))
    main(80, most=1)
