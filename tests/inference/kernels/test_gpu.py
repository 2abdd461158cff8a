"""The GPU's kernels where there is no GPU: numerics under Triton's interpreter, and that they compile.

Each runs in a process of its own: the interpreter is chosen before triton is imported, and must not reach other tests.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference.kernels.attention import Layout
from inference.kernels.gpu.layout import Placed
from inference.kernels.gpu.tiles import Family, Tiles
from inference.kernels.operands import Segments

HERE = Path(__file__).parent / "on_device"
ROOT = Path(__file__).parents[3]
PLUGINS = ("-p", "no:randomly", "-p", "no:django", "-p", "no:cacheprovider")


def run(*arguments: str, **environment: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kernel", ["sgmm", "attention"])
def test_its_numerics_under_the_interpreter(kernel: str) -> None:
    run("-m", "pytest", "-q", "-x", "--noconftest", *PLUGINS, str(HERE / f"{kernel}.py"), TRITON_INTERPRET="1")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("processor", ["Haswell", "Prescott"])
def test_a_row_s_bits_hang_on_no_processor_s_blas(processor: str) -> None:
    files = (str(HERE / f"{kernel}.py") for kernel in ("sgmm", "attention"))
    environment = {"TRITON_INTERPRET": "1", "OPENBLAS_CORETYPE": processor}
    run("-m", "pytest", "-q", "-x", "--noconftest", "-k", "bit_by_bit", *PLUGINS, *files, **environment)


@pytest.mark.timeout(300)
def test_it_compiles(tmp_path: Path) -> None:
    run(str(HERE / "compiled.py"), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))


def test_a_cpu_never_imports_triton() -> None:
    run(
        "-c",
        "import sys, torch\n"
        "from inference.kernels.attention import Layout, paged_attention, store_kv\n"
        "from inference.kernels.operands import Segments, Table\n"
        "from inference.kernels.sgmm import sgmm_\n"
        "table = Table(1, 16, 16)\n"
        "table.set(0, torch.ones(2, 16), torch.ones(16, 2), 1.0)\n"
        "sgmm_(torch.zeros(3, 16), torch.ones(3, 16), table, Segments.of([0], [3]))\n"
        "layout, rows, cache = Layout.of([3], [3], [[0]], 4), torch.ones(3, 1, 16), torch.zeros(1, 4, 1, 16)\n"
        "store_kv(rows, rows, cache, cache, layout.slots)\n"
        "paged_attention(rows, cache, cache, layout, 1.0)\n"
        "assert 'triton' not in sys.modules",
    )


@pytest.mark.parametrize("family", Family)
def test_every_row_with_an_adapter_is_in_one_tile_of_its_slot(family: Family) -> None:
    slots, lengths = [3, 0, -1, 3, 7, 0, 9], [70, 1, 5, 20, 1, 2, 0]
    tiles = Tiles(family, 128, 16, "cpu")
    tiles.load(Segments.of(slots, lengths))
    places, where = tiles.numbers[:128].tolist(), tiles.numbers[128:].view(3, -1).T.tolist()
    found = {places[place]: slot for slot, first, last in where if slot >= 0 for place in range(first, last)}
    rows = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
    assert found == {row: slot for row, slot in enumerate(rows) if slot >= 0}
    assert all(last - first <= family for slot, first, last in where)
    assert sum(last - first for slot, first, last in where) == len(found)


def test_more_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(AssertionError, match="more rows"):
        Tiles(Family.PER_ROW, 2, 4, "cpu").load(Segments.of([0, 1], [2, 1]))
    with pytest.raises(AssertionError, match="more slots"):
        Tiles(Family.GROUPED, 16, 1, "cpu").load(Segments.of([0, 1, 2], [1, 1, 1]))
    room = Placed(2, 2, 1, query=1, context=16, device="cpu")
    for queries, contexts, blocks in (([2], [2], [[0]]), ([1], [17], [[0, 1]]), ([1] * 3, [1] * 3, [[0], [1], [2]])):
        with pytest.raises((AssertionError, ValueError)):
            room.load(Layout.of(queries, contexts, blocks, 16))


def test_a_layout_says_the_same_on_the_device() -> None:
    layout = Layout.of([1, 35, 0], [33, 40, 7], [[4, 0, 7], [1, 2, 3], [5]], 16)
    placed = Placed.of(layout, "cpu")
    assert torch.equal(placed.slots, layout.slots)
    assert torch.equal(placed.tables, layout.block_tables)
    assert torch.equal(placed.starts, layout.query_starts)
    assert torch.equal(placed.contexts, layout.context_lengths)
    assert placed.tiles.view(-1, 2).tolist()[:4] == [[0, 0], [1, 0], [1, 16], [1, 32]]
    assert set(placed.tiles.tolist()[8:]) <= {-1}
    assert layout.on(placed).slots is placed.slots
