"""Decode steps over fixed, padded rooms: recorded once, replayed for any assignment of adapters.

Here a recording is the pass itself, shown nothing but what a device would read: the room's tensors. What CUDA does with
it is in `kernels/on_device/graphs.py`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from inference.engine.graphs import FAMILIES, Record, Replay, Room, _sizes
from inference.engine.runner import Runner
from inference.kernels.gpu.tiles import Family, Tiles
from inference.kernels.operands import Segments
from inference.models.load import Model

BLOCKS = 200


def runs(tiles: Tiles) -> Iterator[tuple[int, int, int]]:
    """What the programs of a launch would take: row, row + 1, slot."""
    places, where = tiles.numbers[: tiles.rows].tolist(), tiles.numbers[tiles.rows :].view(3, -1).T.tolist()
    for slot, first, last in where:
        if slot >= 0:
            yield from ((row, row + 1, slot) for row in places[first:last])


def on_host(room: Room, family: Family | None, run: Replay) -> Replay:
    def replay() -> Tensor:
        if family is not None:
            starts, ends, slots = zip(*sorted(runs(room.tiles[family])), strict=True)
            room.segments[family] = Segments(starts, ends, slots)
        return run()

    run()  # as before a capture: over an empty room, it must change nothing
    return replay


def recorded(driver: Any, record: Record = on_host, rows: int = 16) -> Runner:
    """The driver's engine, from now on with a runner that replays."""
    runner = Runner(driver.model, BLOCKS, 16)
    runner.record(rows, driver.scheduler.context, record)
    driver.engine._runner = runner
    return runner


def adapters(workshop: Any, base: Any) -> dict[str, Any]:
    everything = {"target_modules": "all-linear", "lora_alpha": 8}
    return {
        "one": workshop.adapter(base, 1, r=4, lora_alpha=16, target_modules=["q_proj", "o_proj"]),
        "two": workshop.adapter(base, 2, r=16, **everything),
        "three": workshop.adapter(base, 3, torch.bfloat16, r=2, lora_alpha=4, target_modules=["down_proj", "up_proj"]),
        "four": workshop.adapter(base, 4, r=9, **everything),
        "dora": workshop.adapter(base, "dora", r=4, lora_alpha=8, target_modules=["v_proj"], use_dora=True),
    }


def crowd(driver: Any, workshop: Any, names: list[str]) -> list[Any]:
    """Requests that come and go while others decode: batches grow and shrink."""
    asked = []
    for k in range(15):
        prompt = workshop.prompt(3 + 4 * k, seed=k)
        asked.append(driver.submit(prompt, names[k % len(names)], max_tokens=10 + 5 * (k % 4)))
        driver.engine.step()
        driver.engine.step()
    driver.run()
    return [driver.tokens(sequence) for sequence in asked]


def test_replayed_steps_give_the_eager_ones_tokens(workshop: Any) -> None:
    base = workshop.base("llama")
    made = adapters(workshop, base)
    names = ["", "one", "two", "", "three", "four"]
    eager = workshop.engine(base, made, blocks=BLOCKS)
    replaying = workshop.engine(base, made, blocks=BLOCKS)
    runner = recorded(replaying)

    assert crowd(replaying, workshop, names) == crowd(eager, workshop, names)
    assert runner.replayed > 20
    assert set(replaying.engine.steps_by_rows) >= set(range(1, 8)), "batches of few sizes only: little was tested"


def test_every_pass_is_made_with_the_model_s_device_as_the_thread_s_own(
    workshop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Model] = []
    passes: list[bool] = []
    logits = Model.logits

    @contextmanager
    def current(model: Model) -> Iterator[None]:
        entered.append(model)
        yield
        entered.pop()

    def watched(model: Model, *told: Tensor) -> Tensor:
        passes.append(entered == [model])
        return logits(model, *told)

    monkeypatch.setattr(Model, "current", current, raising=False)
    monkeypatch.setattr(Model, "logits", watched)
    driver = workshop.engine(workshop.base("llama"), blocks=BLOCKS)
    loading = len(passes)
    runner = recorded(driver)
    recording = len(passes)
    driver.answer(workshop.prompt(9))
    assert 0 < loading < recording < len(passes)
    assert runner.replayed
    assert all(passes)


def test_slots_are_refilled_between_replays(workshop: Any) -> None:
    """Four adapters in two slots: the same recordings serve them one after the other."""
    base = workshop.base("llama")
    made = adapters(workshop, base)
    driver = workshop.engine(base, made, blocks=BLOCKS, slots=2)
    runner = recorded(driver)
    prompt = workshop.prompt(9)
    for name in ("one", "two", "three", "four", "", "one"):
        assert [driver.answer(prompt, name)] == base.answers(made.get(name), [prompt], 8), name or "base"
    assert runner.replayed == 6 * 7


def test_more_segments_than_were_recorded_are_all_computed(workshop: Any) -> None:
    """Recorded over one segment (SGLang #28371): rows of other adapters than their neighbours still get theirs."""
    base = workshop.base("llama")
    made = {name: path for name, path in adapters(workshop, base).items() if name != "dora"}
    driver = workshop.engine(base, made, blocks=BLOCKS)
    runner = recorded(driver, rows=8)
    prompts = [workshop.prompt(5, seed=k) for k in range(8)]
    names = [*made, *made]
    asked = [driver.submit(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    driver.run()
    assert max(driver.engine.steps_by_adapters) == 4
    assert runner.replayed == 7
    for prompt, name, sequence in zip(prompts, names, asked, strict=True):
        assert [driver.tokens(sequence)] == base.answers(made[name], [prompt], 8)


def test_what_python_does_segment_by_segment_is_not_replayed(workshop: Any) -> None:
    base = workshop.base("llama")
    made = adapters(workshop, base)
    driver = workshop.engine(base, made, blocks=BLOCKS)
    runner = recorded(driver)
    prompt = workshop.prompt(7)
    assert [driver.answer(prompt, "dora")] == base.answers(made["dora"], [prompt], 8)
    assert runner.replayed == 0
    assert [driver.answer(prompt)] == base.answers(None, [prompt], 8)
    assert runner.replayed == 7


def test_padding_changes_no_block(workshop: Any) -> None:
    base = workshop.base("llama")
    driver = workshop.engine(base, blocks=BLOCKS)
    recorded(driver)
    asked = [driver.submit(workshop.prompt(5, seed=k), max_tokens=20) for k in range(3)]
    while any(sequence.remaining > 1 for sequence in asked):
        driver.engine.step()
    cache = driver.model.cache
    for tensors in (cache._keys, cache._values):
        for tensor in tensors.values():
            tensor[[b for b in range(BLOCKS) if not any(b in s.blocks for s in asked)]] = float("nan")
    before = cache._keys[1].clone()
    places = [(sequence.blocks[0], sequence.computed) for sequence in asked]
    driver.engine.step()
    changed = (cache._keys[1] != before) & ~(cache._keys[1].isnan() & before.isnan())
    assert sorted(map(tuple, changed.flatten(2).any(2).nonzero().tolist())) == sorted(places)


def test_a_room_has_a_program_for_every_row_whatever_was_recorded() -> None:
    assert list(_sizes(1)) == [1]
    assert list(_sizes(12)) == [1, 2, 4, 8, 12]
    for rows in _sizes(48):
        room = Room(rows, 64, 16, torch.device("cpu"))
        for family in FAMILIES:
            numbers, count = room.tiles[family].numbers.data_ptr(), room.tiles[family].count
            for slots in (list(range(rows)), [3] * rows, [row // 2 for row in range(rows)]):
                room.tiles[family].load(Segments.of(slots, [1] * rows))
                assert sorted(runs(room.tiles[family])) == [(row, row + 1, slot) for row, slot in enumerate(slots)]
            assert (room.tiles[family].numbers.data_ptr(), room.tiles[family].count) == (numbers, count)


def test_a_model_that_cannot_be_recorded_runs_eagerly_and_says_so_once(
    workshop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(room: Room, family: Family | None, run: Replay) -> Replay:
        raise RuntimeError("operation not permitted when stream is capturing")

    base = workshop.base("llama")
    driver = workshop.engine(base, blocks=BLOCKS)
    with caplog.at_level(logging.ERROR):
        runner = recorded(driver, refuse)
        prompt = workshop.prompt(7)
        assert [driver.answer(prompt)] == base.answers(None, [prompt], 8)
    assert runner.replayed == 0
    assert [record.message for record in caplog.records if "recorded" in record.message] == [
        "decode steps can't be recorded as CUDA graphs: every step runs eagerly, and slower"
    ]


def test_nothing_is_recorded_on_a_cpu(workshop: Any) -> None:
    driver = workshop.engine(workshop.base("llama"), blocks=BLOCKS)
    runner = Runner(driver.model, BLOCKS, 16)
    runner.record(16, 256)
    assert runner.graphs is None
