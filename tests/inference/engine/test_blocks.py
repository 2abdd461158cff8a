"""The block pool's law, and who may meet whose prefix."""

import random

import pytest

from inference.engine.blocks import BlockPool, chain, root


def test_a_lease_is_all_or_nothing() -> None:
    pool = BlockPool(4, 16)
    assert len(pool.lease(3) or []) == 3
    assert pool.lease(2) is None
    assert pool.available == 1


def test_a_sealed_block_is_met_again_after_its_release() -> None:
    pool = BlockPool(4, 16)
    blocks = pool.lease(2) or []
    hashes = [b"first", b"second"]
    for block, digest in zip(blocks, hashes, strict=True):
        pool.seal(block, digest)
    pool.release(blocks)
    assert pool.match([*hashes, b"third"]) == blocks
    pool.check()


def test_a_prefix_is_forgotten_from_its_end_when_memory_is_short() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.lease(2) or []
    pool.seal(blocks[0], b"first")
    pool.seal(blocks[1], b"second")
    pool.release(blocks)
    pool.lease(1)
    assert pool.match([b"first", b"second"]) == blocks[:1]


def test_releasing_twice_is_a_bug() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.lease(1) or []
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)


def test_hashes_depend_on_adapter_salt_and_everything_before() -> None:
    roots = [root("", ""), root("a", ""), root("", "a"), root("ab", "c"), root("a", "bc")]
    assert len(set(roots)) == len(roots)
    assert chain(roots[0], [1, 2]) != chain(roots[1], [1, 2])
    assert chain(roots[0], [1, 2]) != chain(roots[0], [2, 1])


def test_the_law_holds_through_random_leases() -> None:
    draw = random.Random(7)
    pool = BlockPool(24, 16)
    held: list[list[int]] = []
    for number in range(2000):
        if held and draw.random() < 0.5:
            pool.release(held.pop(draw.randrange(len(held))))
        elif known := pool.match([str(draw.randrange(40)).encode()]):
            held.append(known)
        elif fresh := pool.lease(draw.randint(1, 4)):
            pool.seal(fresh[0], str(draw.randrange(40)).encode())
            held.append(fresh)
        if number % 10 == 0:
            pool.check()
    assert pool.leased == len({block for blocks in held for block in blocks})
