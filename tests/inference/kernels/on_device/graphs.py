"""Decode steps that CUDA has captured, against the eager engine. Only on a GPU, on a small random model:

python -m pytest --noconftest tests/inference/kernels/on_device/graphs.py
"""

import pytest
import torch

from benchmarks import gpu
from inference.kernels.gpu.tiles import Family

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = torch.device("cuda")
SMALL = {
    "vocab_size": 997,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIXED = ["", "8:0", "16:1", "16:1", "", "64:2", "5:3", "16:4"]


def bench(replays: bool) -> gpu.Bench:
    made = gpu.Bench(gpu.LLAMA_8B | SMALL, DEVICE, torch.float32, rows=len(MIXED), tokens=20)
    assert made.runner.graphs is not None, "the capture failed; the log says why"
    if not replays:
        made.runner.graphs = None
    return made


def answers(made: gpu.Bench, digests: list[str]) -> list[list[int]]:
    torch.manual_seed(1)
    asked = [made.submit(digest, 6 + 3 * number) for number, digest in enumerate(digests)]
    made.run()
    made.scheduler.check()
    return [request.output for request in asked]


def test_replays_give_the_eager_engines_tokens_for_any_assignment() -> None:
    """Recorded over one segment; batches shrink, adapters change slots, families differ, and none at all."""
    replaying, eager = bench(True), bench(False)
    for digests in (MIXED, MIXED[::-1], ["16:1"] * 8, [""] * 5, [f"{4 + n}:{n}" for n in range(8)], ["32:9"]):
        found = answers(replaying, digests)
        assert found == answers(eager, digests), digests
    assert replaying.runner.replayed > 100
    assert {family for _, family in replaying.runner.graphs._replays} == {None, Family.PER_ROW, Family.GROUPED}  # type: ignore[union-attr]


def test_adapters_change_the_answers() -> None:
    told = answers(bench(True), ["16:1"] * 2 + ["16:2"]), answers(bench(True), ["16:3"] * 2 + ["16:2"])
    assert told[0][0] != told[1][0]
    assert told[0][2] == told[1][2]


def test_a_replayed_step_waits_once() -> None:
    """For the sampled tokens, and for nothing before them."""
    made = bench(True)
    for number in range(4):
        made.submit(f"16:{number}", 40)
    for _ in range(6):
        made._engine.step()
    plan = made.scheduler.plan()
    graphs = made.runner.graphs
    assert graphs is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            logits = graphs.logits(plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert logits is not None
    assert logits.isfinite().all()
