"""The GPU benchmark without a GPU: its tables are made from a tiny model, and without a device it says so."""

import pytest
import torch

from benchmarks import gpu, gpu_kernels

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def test_its_tables_have_a_line_for_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = torch.device("cpu")
    bench = gpu.Bench(gpu.LLAMA_8B | TINY, cpu, torch.float32, rows=3, tokens=2)
    gpu.table(bench, [3], rate=1e9)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 3 | ")]
    assert [line.split(" | ")[1] for line in lines] == [case.name for case in gpu.cases(3)]
    assert all(len(line.split(" | ")) == 9 for line in lines)
    bench.scheduler.check()

    with torch.inference_mode():
        gpu_kernels.table([2], cpu, torch.float32, {"q/k/v": (32, [32, 16, 16])}, times=1)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| q/k/v | 2 |")]


def test_what_a_step_must_read_is_counted() -> None:
    bench = gpu.Bench(gpu.LLAMA_8B | TINY, torch.device("cpu"), torch.float32, rows=2, tokens=2)
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    pairs = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48)
    base = 4 * (layer + 97 * 32)
    assert bench._bytes(gpu.Case("base"), 2, 0) == base
    assert bench._bytes(gpu.Case("context"), 2, 10) == base + 4 * 10 * 2 * 16
    assert bench._bytes(gpu.Case("mixed", ["8:0", "16:1", "64:2"]), 2, 0) == base + 4 * 24 * pairs


def test_without_a_gpu_it_refuses_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device, and torch sees none here"):
        gpu.main()
