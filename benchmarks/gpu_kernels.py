"""The LoRA part of Llama-3.1-8B's groups of linears on a GPU, rank 16, every row its own adapter; after
`benchmarks.gpu`.

Each call takes the next of several argument sets, more than the second-level cache holds where memory allows, and runs
in a graph, as in a replayed step. vLLM's kernels are timed beside ours where they can be imported.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.kernels import row
from inference.kernels.gpu.tiles import Family, Tiles
from inference.kernels.operands import Group, Segments, Table
from inference.kernels.sgmm import joint_sgmm_, sgmm_

RANK = 16
Shape = tuple[int, list[int]]
GROUPS: dict[str, Shape] = {
    "q/k/v": (4096, [4096, 1024, 1024]),
    "o": (4096, [4096]),
    "gate/up": (4096, [14_336, 14_336]),
    "down": (14_336, [4096]),
}
ROTATED = 256 << 20  # bytes of adapters that calls go through in turn

Call = Callable[[], object]
Peer = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], object]


@dataclass(frozen=True)
class Arguments:
    """Of one call: A [rows, rank, in] and B [rows, out, rank] of every linear, an adapter a row, as a group too."""

    x: Tensor
    y: Tensor
    a: list[Tensor]
    b: list[Tensor]
    group: Group


def arguments(inputs: int, widths: Sequence[int], rows: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device) / 64

    a = [random(rows, RANK, inputs) for _ in widths]
    b = [random(rows, width, RANK) for width in widths]
    tables = [Table(rows, inputs, width, device) for width in widths]
    group = Group(tables)
    for table, ours, theirs in zip(tables, a, b, strict=True):
        for slot in range(rows):
            table.set(slot, ours[slot], theirs[slot], 1.0)
    return Arguments(random(rows, inputs), random(rows, sum(widths)), a, b, group)


def seconds(call: Call, times: int) -> float:
    """Of one call, the mean of `times` that follow each other; the device's time where there is one."""
    call()
    if not torch.cuda.is_available():
        started = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - started) / times
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / times


def recorded(call: Callable[[Arguments], object], sets: Sequence[Arguments]) -> Call:
    """All sets' calls as one graph; on a CPU just one after the other."""

    def run() -> None:
        for each in sets:
            call(each)

    if not sets[0].x.is_cuda:
        return run
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def vllms(rows: int, device: torch.device) -> Peer | None:
    """vLLM's shrink and expand with each row its own adapter; None where they can't be imported or called."""
    try:
        import vllm.lora.ops.triton_ops as ops  # type: ignore[import-not-found]

        meta = ops.LoRAKernelMeta.make(rows, rows, device=device)
        meta.prepare_tensors(torch.arange(rows, dtype=torch.int32, device=device))
        try:
            where = meta.meta_args(rows)
        except TypeError:  # newer ones want to know whether to specialise on the adapters in use
            where = meta.meta_args(rows, False)
    except Exception as error:
        print(f"without vLLM's kernels: {type(error).__name__}: {error}")
        return None

    def run(x: Tensor, y: Tensor, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        shrunk = torch.zeros(len(a), rows, RANK, dtype=torch.float32, device=x.device)
        ops.lora_shrink(x, a, shrunk, *where, 1.0)
        ops.lora_expand(shrunk, b, y, *where, add_inputs=True)

    return run


def table(
    rows: Sequence[int], device: torch.device, dtype: torch.dtype, groups: dict[str, Shape] = GROUPS, times: int = 20
) -> None:
    """Microseconds of a call."""
    print(f"\nLoRA part of a group of linears, rank {RANK}, a row an adapter, microseconds; base: the product alone\n")
    row("group", "rows", "base", "ours", "ours, linear by linear", "vLLM", "ours, GB/s")
    row(*["---"] * 7)
    for count in rows:
        peer = vllms(count, device)
        segments = Segments.of(range(count), [1] * count)
        if device.type == "cuda":
            segments.place(Tiles(Family.PER_ROW, count, count, device))
        for name, shape in groups.items():
            took, size = _case(shape, count, device, dtype, segments, peer, times)
            figures = (f"{1e6 * took[way]:.1f}" if way in took else "" for way in ("base", "ours", "apart", "vLLM"))
            row(name, count, *figures, f"{size / took['ours'] / 1e9:.0f}")


def _case(
    shape: Shape,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
    segments: Segments,
    peer: Peer | None,
    times: int,
) -> tuple[dict[str, float], int]:
    """Seconds of a call by its way, and the bytes of its adapters."""
    inputs, widths = shape
    size = rows * RANK * sum(inputs + width for width in widths) * dtype.itemsize
    sets = [arguments(inputs, widths, rows, device, dtype) for _ in range(min(64, -(-ROTATED // size)))]
    weights = cycle([torch.randn(sum(widths), inputs, dtype=dtype, device=device) for _ in range(4)])

    def apart(each: Arguments) -> None:
        for table, columns in zip(each.group.tables, torch.split(each.y, widths, dim=1), strict=True):
            sgmm_(columns, each.x, table, segments)

    ways: dict[str, Callable[[Arguments], object]] = {
        "base": lambda each: functional.linear(each.x, next(weights)),
        "ours": lambda each: joint_sgmm_(each.y, each.x, each.group, segments),
        "apart": apart,
    }
    if peer is not None:
        ways["vLLM"] = lambda each: peer(each.x, each.y, each.a, each.b)
    return {way: seconds(recorded(call, sets), times) / len(sets) for way, call in ways.items()}, size
