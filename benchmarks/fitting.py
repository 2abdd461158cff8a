"""The simulation's constants from measured steps of the engine: `python -m benchmarks.scheduling --fit`.

Decoding steps, and prompts computed in one step, over a grid of rows, tokens a row and distinct adapters of rank 16,
all resident. The fit is by least squares of relative errors, with no constant below zero; cases take turns.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.engine import Ours
from benchmarks.loading import make_adapter
from benchmarks.workload import make_model, medians
from inference.models.load import load

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Case = tuple[int, int, int]  # rows, tokens of each, distinct adapters

ROWS = (1, 4, 8, 16, 32)
PREFILLS = ((1, 64), (1, 256), (1, 512), (4, 64), (8, 64), (2, 256))  # at most batch_tokens, as the engine is started


def grid() -> list[Case]:
    shapes = [*((rows, 1) for rows in ROWS), *PREFILLS]
    return [(*shape, adapters) for shape in shapes for adapters in sorted({0, 1, shape[0] // 2, shape[0]})]


def fit(layers: int, rounds: int) -> dict[str, float]:
    """Seconds of a step, and of each of its tokens, rows and distinct adapters. Prints what was measured and missed."""
    with tempfile.TemporaryDirectory() as name:
        ours = _engine(Path(name), layers)
        cases = grid()
        for case in cases:  # adapters become resident, and shapes known
            _measured(ours, case)
        found = medians({str(case): partial(_measured, ours, case) for case in cases}, rounds)
    measured = np.array([found[str(case)] for case in cases])
    terms = np.array([_terms(case) for case in cases])
    constants, _ = nnls(terms / measured[:, None], np.ones(len(cases)))
    _print(cases, measured, terms @ constants)
    return dict(zip(("step", "token", "row", "adapter"), map(float, constants), strict=True))


def _engine(folder: Path, layers: int) -> Ours:
    base = make_model(folder / "base", layers)
    spec = load(str(base), torch.device("cpu"), torch.float32, 1).spec
    return Ours(base, [make_adapter(folder / f"a{number}", spec, number) for number in range(max(ROWS))])


def _measured(ours: Ours, case: Case) -> float:
    rows, tokens, adapters = case
    return ours.step(rows, 6, range(adapters)) if tokens == 1 else ours.prefill(rows, tokens, range(adapters))


def _terms(case: Case) -> tuple[float, float, float, float]:
    rows, tokens, adapters = case
    return 1.0, float(rows * tokens), float(rows), float(adapters)


def _print(cases: list[Case], measured: Numbers, predicted: Numbers) -> None:
    print("rows  tokens  adapters   measured      model   off")
    for (rows, tokens, adapters), seconds, said in zip(cases, measured, predicted, strict=True):
        print(f"{rows:4} {rows * tokens:7} {adapters:9} {1e3 * seconds:7.1f} ms {1e3 * said:7.1f} ms", end=" ")
        print(f"{said / seconds - 1:+5.0%}")
    off = np.abs(predicted / measured - 1)
    print(f"off by {np.median(off):.0%} in the median, {off.max():.0%} at most")
