"""The LoRA part of a linear, and attention, by our kernels and by what torch offers: `python -m benchmarks.kernels`.

Candidates alternate within a case, so that a busy neighbour hurts all alike; figures are medians. Before each timed
LoRA call the base linear runs, untimed, and writes the output that the call adds to, as in a decode step; each call
takes the next of several adapter sets, so that adapters come from memory. On a machine with other work, `--threads 1`
takes CPU time instead, and says so.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from inference.kernels import reference
from inference.kernels.attention import Layout, paged_attention
from inference.kernels.library import library
from inference.kernels.operands import Segments, Table
from inference.kernels.sgmm import sgmm_

RANK = 16
Candidates = dict[str, Callable[[], object]]


def medians(candidates: Candidates, seconds: float, before: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Microseconds a call, candidates taking turns until the time is up. Of one thread: its CPU time."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, run in candidates.items():
            before()
            start = clock()
            run()
            samples[name].append(1e6 * (clock() - start))
    return {name: statistics.median(taken) for name, taken in samples.items()}


@dataclass(frozen=True)
class Case:
    """`rows` rows of a linear, `adapters` distinct adapters of rank 16 spread over them in runs."""

    inputs: int
    outputs: int
    rows: int
    adapters: int
    dtype: torch.dtype

    def medians(self, seconds: float) -> dict[str, float]:
        copies = max(1, min(100, int(300 / self.megabytes)))
        sets = [self._arguments() for _ in range(copies)]
        x, y = torch.randn(self.rows, self.inputs), torch.zeros(self.rows, self.outputs)
        weight = torch.randn(self.outputs, self.inputs)
        lengths = [self.rows // self.adapters] * self.adapters
        segments = Segments.of(range(self.adapters), lengths)
        choice = torch.arange(self.adapters).repeat_interleave(self.rows // self.adapters)
        ends = torch.tensor(segments.ends, dtype=torch.int32)
        rotation: Iterator[tuple[Table, Tensor, Tensor]] = cycle(sets)

        def ours() -> None:
            sgmm_(y, x, next(rotation)[0], segments)

        def loop() -> None:
            reference.sgmm_(y, x, next(rotation)[0].pairs, segments)

        def gather() -> None:
            _, a, b = next(rotation)
            shrunk = torch.bmm(x.to(a.dtype)[:, None], a[choice])
            y.add_(torch.bmm(shrunk, b[choice])[:, 0])

        def grouped() -> None:
            _, a, b = next(rotation)
            y.add_(torch._grouped_mm(torch._grouped_mm(x.to(a.dtype), a, offs=ends), b, offs=ends))

        def base() -> None:
            torch.mm(x, weight.T, out=y)

        return medians({"base": base, "ours": ours, "loop": loop, "gather": gather, "grouped": grouped}, seconds, base)

    def _arguments(self) -> tuple[Table, Tensor, Tensor]:
        """The same adapters as a table, and stacked the way bmm and grouped_mm want them: [n, in, r], [n, r, out]."""
        a = torch.randn(self.adapters, RANK, self.inputs).to(self.dtype)
        b = torch.randn(self.adapters, self.outputs, RANK).to(self.dtype)
        table = Table(self.adapters, self.inputs, self.outputs)
        for slot in range(self.adapters):
            table.set(slot, a[slot], b[slot], scale=1.0)
        return table, a.transpose(1, 2), b.transpose(1, 2)

    @property
    def megabytes(self) -> float:
        """Of one set's adapters."""
        return self.adapters * RANK * (self.inputs + self.outputs) * self.dtype.itemsize / 1e6


def adapters(seconds: float) -> None:
    print(f"\nLoRA part of a linear, rank {RANK}, microseconds; base: the linear alone\n")
    names = ("base", "ours", "loop", "gather", "grouped")
    row("in x out", "rows", "adapters", "dtype", "MB", *names, "ours / base", "GB/s")
    row(*["---"] * (len(names) + 7))
    for inputs, outputs in [(896, 896), (896, 4864), (4864, 896)]:
        for rows, distinct in [(1, 1), (8, 8), (32, 32), (32, 4), (32, 1), (512, 1)]:
            for dtype in (torch.float32, torch.bfloat16):
                case = Case(inputs, outputs, rows, distinct, dtype)
                took = case.medians(seconds)
                figures = (f"{took['ours'] / took['base']:.2f}", f"{1e3 * case.megabytes / took['ours']:.1f}")
                shape = (f"{inputs} x {outputs}", rows, distinct, str(dtype)[6:], f"{case.megabytes:.2f}")
                row(*shape, *(round(took[name]) for name in names), *figures)


def attention(seconds: float) -> None:
    print("\nAttention of one layer, block size 16, milliseconds (sdpa: on keys gathered beforehand, for free)\n")
    row("heads / kv x dim", "sequences x new tokens of context", "ours", "GFLOP/s", "slow twin", "sdpa")
    row(*["---"] * 6)
    for heads, kv_heads, dim in [(14, 2, 64), (32, 8, 128)]:
        for sequences, new, context in [(1, 1, 128), (32, 1, 128), (8, 1, 2048), (1, 512, 512), (1, 512, 4096)]:
            blocks = -(-context // 16)
            keys, values = torch.randn(2, sequences * blocks, kv_heads, 16, dim).transpose(2, 3)
            tables = torch.randperm(sequences * blocks).view(sequences, blocks).tolist()
            layout = Layout.of([new] * sequences, [context] * sequences, tables, 16)
            q = torch.randn(sequences * new, heads, dim)
            took = medians(_attention_candidates(q, keys, values, layout, sequences), seconds)
            pairs = sequences * (new * context - new * (new - 1) // 2)
            rate = 4e-3 * pairs * heads * dim / took["ours"]
            ours, twin, sdpa = (f"{took[name] / 1e3:.2f}" for name in ("ours", "twin", "sdpa"))
            case = f"{sequences} x {new} of {context}"
            row(f"{heads} / {kv_heads} x {dim}", case, ours, round(rate), twin, sdpa)


def _attention_candidates(q: Tensor, keys: Tensor, values: Tensor, layout: Layout, sequences: int) -> Candidates:
    scale = q.shape[2] ** -0.5
    context = int(layout.context_lengths[0])
    new = q.shape[0] // sequences
    starts, contexts = layout.query_starts.tolist(), layout.context_lengths.tolist()
    table = layout.block_tables.long()
    key, value = (cache[table].flatten(1, 2)[:, :context].transpose(1, 2).contiguous() for cache in (keys, values))
    queries = q.view(sequences, new, *q.shape[1:]).transpose(1, 2)
    mask = torch.ones(new, context, dtype=torch.bool).tril(context - new)

    def twin() -> None:
        reference.paged_attention(
            q, keys, values, layout.block_tables, query_starts=starts, context_lengths=contexts, scale=scale
        )

    return {
        "ours": lambda: paged_attention(q, keys, values, layout, scale),
        "twin": twin,
        "sdpa": lambda: scaled_dot_product_attention(queries, key, value, attn_mask=mask, enable_gqa=True),
    }


def calls(seconds: float) -> None:
    """What a call costs before any arithmetic: one row, rank 1, 16 x 16."""
    table, segments = Table(1, 16, 16), Segments.of([0], [1])
    table.set(0, torch.randn(1, 16), torch.randn(16, 1), 1.0)
    x, y = torch.randn(1, 16), torch.randn(1, 16)
    native = library()
    assert native is not None
    at = (y.data_ptr(), 16, x.data_ptr(), 16, table.address, segments.address)
    took = medians(
        {
            "the C call by ctypes": lambda: native.sgmm(*at),
            "sgmm_": lambda: sgmm_(y, x, table, segments),
            "the registered op": lambda: torch.ops.lorayard.sgmm_(y, x, table.handle, segments.handle),
            "Segments.of, 32 sequences": lambda: Segments.of(range(32), [1] * 32),
            "torch.mm": lambda: torch.mm(x, x.T),
        },
        seconds,
    )
    print("\nA call, microseconds: " + ", ".join(f"{name} {taken:.1f}" for name, taken in took.items()))


def row(*cells: object) -> None:
    """One line of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def machine() -> str:
    """Processor, threads and ISA."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    native = library()
    return (
        f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, ISA {native.isa if native else 'none'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each case")
    parser.add_argument("--only", choices=["adapters", "attention", "calls"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    if options.threads == 1:
        print("one thread: figures are its CPU time")
    with torch.inference_mode():
        for part in (calls, adapters, attention):
            if options.only in (None, part.__name__):
                part(options.seconds)


if __name__ == "__main__":
    main()
