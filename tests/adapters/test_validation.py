"""A folder is an adapter, or every reason why not is given; nothing in it is changed."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from adapters.errors import Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.limits import MIB, Limits
from adapters.validation import Summary, validate
from tests.adapters.builders import (
    BASE,
    HIDDEN,
    Tensors,
    adapter,
    config_bytes,
    magnitudes,
    tensor_name,
    tensors,
    values,
    weights,
    write,
)

TENSOR = tensor_name("model.layers.0.self_attn.q_proj", "A")
BITS = {
    "F32": {"nan": 0x7FC00000, "inf": 0x7F800000, "-inf": 0xFF800000, "odd nan": 0xFF800001},
    "F16": {"nan": 0x7E00, "inf": 0x7C00, "-inf": 0xFC00, "odd nan": 0x7C01},
    "BF16": {"nan": 0x7FC0, "inf": 0x7F80, "-inf": 0xFF80, "odd nan": 0xFF81},
}
LARGEST = {"F32": 0x7F7FFFFF, "F16": 0x7BFF, "BF16": 0x7F7F}


def rules(folder: Path, limits: Limits | None = None) -> tuple[str, ...]:
    before = {path: path.lstat() for path in folder.iterdir()}
    with pytest.raises(Rejected) as refusal:
        validate(folder, BASE, limits or Limits())
    assert {path: path.lstat() for path in folder.iterdir()}.keys() == before.keys()
    return refusal.value.rules


def test_a_valid_adapter_is_summed_up(tmp_path: Path) -> None:
    files = adapter()
    assert validate(write(tmp_path, files), BASE) == Summary(
        rank_min=4,
        rank_max=4,
        modules=4,
        targets=("q_proj", "v_proj"),
        tensors=8,
        parameters=2 * 4 * (HIDDEN + HIDDEN) + 2 * 4 * (HIDDEN + 8),
        bytes=sum(map(len, files.values())),
        dtype="F32",
        rslora=False,
        base_model="acme/base",
    )


def test_what_an_adapter_has_beside_its_pairs_is_summed_up(tmp_path: Path) -> None:
    made = {**tensors(), **magnitudes(), "base_model.model.lm_head.weight": ("F32", (64, 16), values((64, 16)))}
    files = {CONFIG: config_bytes(use_dora=True, modules_to_save=["lm_head"]), WEIGHTS: weights(made)}
    summary = validate(write(tmp_path, files), BASE)
    assert summary.beside == ("dora", "lm_head.weight")
    assert summary.to_json()["beside"] == ["dora", "lm_head.weight"]
    assert (summary.modules, summary.tensors) == (4, 13)


def test_the_name_of_the_base_model_decides_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, adapter(base_model_name_or_path="/home/me/some-other-copy"))
    assert validate(folder, BASE).base_model == "/home/me/some-other-copy"


def test_the_model_card_is_tolerated(tmp_path: Path) -> None:
    files = adapter()
    summary = validate(write(tmp_path, {**files, "README.md": b"# card"}), BASE)
    assert summary.bytes == sum(map(len, files.values()))


@pytest.mark.parametrize("dtype", BITS)
def test_each_dtype_is_taken_and_named(dtype: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {CONFIG: config_bytes(), WEIGHTS: weights(tensors(dtype=dtype))})
    assert validate(folder, BASE).dtype == dtype


@pytest.mark.parametrize("position", [0, 17, 4 * HIDDEN - 1])
@pytest.mark.parametrize(("dtype", "kind"), [(dtype, kind) for dtype, kinds in BITS.items() for kind in kinds])
def test_one_value_that_is_not_finite_is_found(dtype: str, kind: str, position: int, tmp_path: Path) -> None:
    made = tensors(dtype=dtype)
    raw = bytearray(made[TENSOR][2])
    width = len(raw) // (4 * HIDDEN)
    raw[position * width : (position + 1) * width] = BITS[dtype][kind].to_bytes(width, "little")
    made[TENSOR] = (dtype, (4, HIDDEN), bytes(raw))
    folder = write(tmp_path, {CONFIG: config_bytes(), WEIGHTS: weights(made)})
    with pytest.raises(Rejected) as refusal:
        validate(folder, BASE)
    (finding,) = refusal.value.findings
    assert (finding.rule, finding.tensor, finding.found) == ("non-finite", TENSOR, f"element {position}")


@pytest.mark.parametrize("dtype", LARGEST)
def test_the_largest_numbers_are_finite(dtype: str, tmp_path: Path) -> None:
    made = tensors(dtype=dtype)
    width = 4 if dtype == "F32" else 2
    made[TENSOR] = (dtype, (4, HIDDEN), LARGEST[dtype].to_bytes(width, "little") * 4 * HIDDEN)
    validate(write(tmp_path, {CONFIG: config_bytes(), WEIGHTS: weights(made)}), BASE)


def test_values_are_read_in_bounded_memory(tmp_path: Path) -> None:
    rows = 24 * MIB // (4 * HIDDEN)
    base = type(BASE)("X", 8, 8, HIDDEN, {"big": (rows, HIDDEN)}, {}, False)
    made: Tensors = {tensor_name("big", "A"): ("F32", (16, HIDDEN), values((16, HIDDEN)))}
    made[tensor_name("big", "B")] = ("F32", (rows, 16), values((rows, 16)))
    folder = write(tmp_path, {CONFIG: config_bytes(r=16, target_modules=["big"]), WEIGHTS: weights(made)})
    del made
    tracemalloc.start()
    validate(folder, base)
    assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "optimizer.pt",
        "adapter.zip",
        "tokenizer.json",
        "Adapter_Config.json",
        "adapter_config.json ",
    ],
)
def test_what_lies_beside_the_two_files_is_not_looked_at(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, adapter())
    alone = validate(folder, BASE)
    (folder / "checkpoint-10").mkdir()
    (folder / "README.md").symlink_to("/etc/passwd")
    os.mkfifo(folder / name)  # opening it would wait for ever
    assert validate(folder, BASE) == alone


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    files = adapter()
    del files[name]
    with pytest.raises(Rejected, match=name):
        validate(write(tmp_path, files), BASE)


def test_a_missing_file_was_expected_and_not_found(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as refusal:
        validate(write(tmp_path, {CONFIG: config_bytes()}), BASE)
    (found,) = refusal.value.findings
    assert (found.rule, found.expected, found.found) == ("missing-file", WEIGHTS, "")


def test_a_pickle_instead_of_the_weights_is_told_once(tmp_path: Path) -> None:
    assert rules(write(tmp_path, {CONFIG: config_bytes(), "adapter_model.bin": b"PK"})) == ("pickle",)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_plain_file_is_refused_unopened(kind: str, name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "upload", {**adapter(), "README.md": b""})
    (folder / name).unlink()
    if kind == "link":
        (folder / name).symlink_to(write(tmp_path / "elsewhere", adapter()) / CONFIG)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        os.mkfifo(folder / name)
    assert rules(folder)[0] == "link"


def test_an_upload_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path, adapter())
    with (folder / WEIGHTS).open("r+b") as sparse:
        sparse.truncate(3 * 2**30)
    assert rules(folder) == ("too-large",)


def test_the_limits_on_rank_and_tensors_hold(tmp_path: Path) -> None:
    folder = write(tmp_path, adapter())
    assert rules(folder, Limits(rank=3)) == ("rank",)
    assert rules(folder, Limits(tensors=7)) == ("too-many-tensors",)
    assert rules(folder, Limits(header=100)) == ("header-too-large",)
    assert rules(folder, Limits(config=100)) == ("config-too-large",)


def test_what_is_wrong_with_either_file_is_told_together(tmp_path: Path) -> None:
    folder = write(tmp_path, {CONFIG: config_bytes(use_qalora=True), WEIGHTS: struct.pack("<Q", 2**60)})
    assert rules(folder) == ("unsupported-qalora", "header-too-large") or rules(folder) == (
        "unsupported-qalora",
        "truncated",
    )


def test_every_truncation_of_the_weights_is_refused(tmp_path: Path) -> None:
    content = weights()
    for length in [*range(0, 64), *range(64, len(content), 97), len(content) - 1]:
        folder = write(tmp_path, {CONFIG: config_bytes(), WEIGHTS: content[:length]})
        assert rules(folder), length
