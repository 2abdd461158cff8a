"""Pages are leased and released, never lost or leased twice, and an adapter is found again as it was put there."""

import importlib.util
import mmap
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.lora import arena as arena_module
from inference.lora.arena import PAGE, Arena, Lease
from inference.lora.weights import AdapterWeights, read
from inference.models.load import load

CPU = torch.device("cpu")


def packed(*pages: float) -> AdapterWeights:
    """An adapter of tensors of so many pages, each full of random bytes."""
    tensors = [torch.randint(256, (int(size * PAGE),), dtype=torch.uint8) for size in pages]
    buffer = torch.cat(tensors)
    parts = dict(enumerate(torch.split(buffer, [len(tensor) for tensor in tensors])))
    starts = tuple(int(part.storage_offset()) for part in parts.values())
    parameters = {"norm": {str(number): part for number, part in parts.items()}}
    return AdapterWeights({}, len(buffer), parameters=parameters, buffer=buffer, starts=starts)


def leased(arena: Arena, weights: AdapterWeights) -> Lease:
    lease = arena.lease(weights)
    assert lease is not None, "there was no room"
    arena.check()
    return lease


def same(one: AdapterWeights, other: AdapterWeights) -> bool:
    mine, theirs = one.parameters["norm"], other.parameters["norm"]
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_an_adapter_takes_the_pages_of_its_bytes_and_leaves_them_all() -> None:
    arena = Arena(10 * PAGE + 17, CPU)
    lease = leased(arena, packed(0.5, 0.25, 3))
    assert (arena.total, arena.free, arena.leased, lease.pages) == (10, 6, 4, 4)
    arena.release(lease)
    arena.check()
    assert arena.free == 10


def test_the_shortest_run_that_is_long_enough_is_taken() -> None:
    arena = Arena(10 * PAGE, CPU)
    first, second, third, fourth = (leased(arena, packed(size)) for size in (4, 1, 2, 1))
    arena.release(first)
    arena.release(third)
    assert [run.first for run in leased(arena, packed(2)).runs] == [5]
    assert {second.runs[0].first, fourth.runs[0].first} == {4, 7}


def test_scattered_room_is_used_without_cutting_a_matrix() -> None:
    arena = Arena(9 * PAGE, CPU)
    leases = [leased(arena, packed(1)) for _ in range(9)]
    for number in (0, 1, 2, 4, 6, 7):
        arena.release(leases[number])
    weights = packed(2, 1, 0.5, 1.5, 0.5)
    lease = leased(arena, weights)
    assert len(lease.runs) == 3
    assert same(weights, arena.fill(lease, weights).result())


def test_small_matrices_leave_the_only_run_that_is_long_enough_to_the_large_one() -> None:
    arena = Arena(9 * PAGE, CPU)
    leases = [leased(arena, packed(size)) for size in (4, 1, 1, 1, 1, 1)]
    for lease in leases[::2]:
        arena.release(lease)
    weights = packed(1, 4, 1)
    lease = leased(arena, weights)
    assert [run.pages for run in lease.runs] == [1, 4, 1]
    assert same(weights, arena.fill(lease, weights).result())


def test_a_matrix_that_no_run_holds_finds_no_room_and_takes_nothing() -> None:
    arena = Arena(9 * PAGE, CPU)
    leases = [leased(arena, packed(1)) for _ in range(9)]
    for lease in leases[::2]:
        arena.release(lease)
    assert arena.lease(packed(2)) is None
    assert arena.free == 5
    arena.check()


def test_what_fits_beside_some_leases_is_what_finds_room_once_the_others_are_released() -> None:
    arena = Arena(9 * PAGE, CPU)
    first, kept, last = (leased(arena, packed(size)) for size in (3, 1, 5))
    assert arena.fits(packed(5), [kept])
    assert arena.fits(packed(5, 3), [kept])
    assert not arena.fits(packed(6), [kept])
    assert not arena.fits(packed(1), [first, kept, last])
    assert arena.fits(packed(9), [])
    assert arena.free == 0
    arena.check()


SIZES = st.lists(st.sampled_from([0.25, 0.75, 1, 2, 3.5]), min_size=1, max_size=6)


@settings(max_examples=80)
@given(acts=st.lists(st.tuples(st.booleans(), SIZES), max_size=40))
def test_whatever_is_leased_and_released_no_adapter_overwrites_another(acts: list[tuple[bool, list[float]]]) -> None:
    arena = Arena(24 * PAGE, CPU)
    held: list[tuple[Lease, AdapterWeights, AdapterWeights]] = []
    for takes, sizes in acts:
        if takes:
            weights = packed(*sizes)
            if (lease := arena.lease(weights)) is not None:
                held.append((lease, weights, arena.fill(lease, weights).result()))
        elif held:
            arena.release(held.pop(len(sizes) % len(held))[0])
            arena.trim()
        arena.check()
        assert all(same(weights, there) for _, weights, there in held)
    for lease, _, _ in held:
        arena.release(lease)
    assert arena.free == arena.total


def test_an_adapter_that_changes_nothing_takes_nothing() -> None:
    arena = Arena(PAGE, CPU)
    full, lease = leased(arena, packed(1)), leased(arena, AdapterWeights({}, 0, buffer=torch.empty(0)))
    assert lease.pages == arena.free == 0
    arena.release(lease)
    arena.release(full)
    arena.check()


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "cut"])
def test_a_real_adapter_comes_out_of_the_arena_as_it_went_in(workshop: Any, holes: bool) -> None:
    base = workshop.base("qwen2", tie_word_embeddings=True)
    model = load(str(base.folder), CPU, torch.float32, 1)
    config = {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "modules_to_save": ["model.norm"], "bias": "all"}
    folder: Path = workshop.adapter(base, "in-arena", torch.bfloat16, r=16, **config)
    weights = read(folder, model.spec, CPU, model.sites.frozen)
    arena = Arena(64 * PAGE, CPU)
    singles = [leased(arena, packed(16)) for _ in range(4)] if holes else []
    for lease in singles[::2]:
        arena.release(lease)
    lease = leased(arena, weights)
    assert (len(lease.runs) > 1) == holes
    there = arena.fill(lease, weights).result()
    for (a, b, scale), (c, d, other) in zip(weights.pairs.values(), there.pairs.values(), strict=True):
        assert (scale, a.dtype, b.dtype) == (other, c.dtype, d.dtype)
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert c.is_contiguous()
        assert d.is_contiguous()
        assert c.data_ptr() % 64 == d.data_ptr() % 64 == 0
    assert there.buffer is None, "the slot would keep the host's copy alive"


@pytest.mark.parametrize("system", [4 << 10, 16 << 10, 64 << 10])
def test_free_pages_go_back_whole_wherever_the_system_s_are_larger(
    system: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARM has pages of 16 and 64 KiB; a range that begins within one can't be given back, and one that ends there takes
    what lies behind it along."""
    monkeypatch.setattr(mmap, "PAGESIZE", system)
    spec = importlib.util.spec_from_file_location("arena_elsewhere", arena_module.__file__)
    assert spec is not None
    assert spec.loader is not None
    elsewhere: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, elsewhere)
    spec.loader.exec_module(elsewhere)
    given_back: list[tuple[int, int]] = []
    arena = elsewhere.Arena(40 * (64 << 10), CPU)
    arena._memory = SimpleNamespace(madvise=lambda _, start, size: given_back.append((start, size)))
    arena.release([arena.lease(packed(size)) for size in (1, 2, 1)][1])
    arena.trim()
    assert given_back
    assert all(start % system == size % system == 0 for start, size in given_back)
