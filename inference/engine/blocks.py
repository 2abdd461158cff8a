"""Knows which KV-cache block is whose and what it holds; never tokens' meaning, tenants or devices.

A block is free (empty), leased (`refs` sequences read it) or cached (nobody reads it, but its content is known by its
hash and may be leased again). The law of the pool: free + cached + leased == total.
"""

import hashlib
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence


def root(digest: str, salt: str) -> bytes:
    """The hash that an empty prefix has; sequences of different adapters or salts never share one."""
    return hashlib.sha256(f"{len(digest)}:{digest}:{salt}".encode()).digest()


def chain(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The hash of a full block: what came before it, and its own tokens."""
    return hashlib.sha256(parent + struct.pack(f"<{len(tokens)}I", *tokens)).digest()


class BlockPool:
    def __init__(self, total: int, size: int) -> None:
        self.total = total
        self.size = size
        self._free = deque(range(total))
        self._cached: OrderedDict[int, bytes] = OrderedDict()  # least recently used first
        self._refs = [0] * total
        self._by_hash: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Blocks that a lease can have now: the free ones and the cached ones, which are then forgotten."""
        return len(self._free) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def leased(self) -> int:
        return sum(refs > 0 for refs in self._refs)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def lease(self, count: int) -> list[int] | None:
        """`count` empty blocks, all or none: None if there are not so many."""
        if count > self.available:
            return None
        return [self._take() for _ in range(count)]

    def match(self, prefix: Sequence[bytes]) -> list[int]:
        """Lease the blocks that hold the longest known run of `prefix` (hashes from the first block on)."""
        blocks = []
        for block in map(self._by_hash.get, prefix):
            if block is None:
                break
            self._cached.pop(block, None)
            self._refs[block] += 1
            blocks.append(block)
        return blocks

    def seal(self, block: int, digest: bytes) -> None:
        """Say what a full, leased block holds. A second block with the same content stays unknown."""
        assert self._refs[block] > 0, "only a leased block can be sealed"
        assert block not in self._hash_of, "a block was sealed twice"
        if digest not in self._by_hash:
            self._by_hash[digest] = block
            self._hash_of[block] = digest

    def forget(self, blocks: Sequence[int]) -> None:
        """Nobody shall meet the content of these leased blocks again; who reads them now goes on."""
        for block in blocks:
            assert self._refs[block] > 0, "only a leased block can be forgotten"
            if (digest := self._hash_of.pop(block, None)) is not None:
                del self._by_hash[digest]

    def release(self, blocks: Sequence[int]) -> None:
        """Give a sequence's blocks back, the last first, so that a prefix is forgotten from its end."""
        for block in reversed(blocks):
            assert self._refs[block] > 0, "a block was released twice"
            self._refs[block] -= 1
            if self._refs[block] == 0:
                if block in self._hash_of:
                    self._cached[block] = self._hash_of[block]
                else:
                    self._free.append(block)

    def freed_by(self, leases: Iterable[Sequence[int]]) -> int:
        """How many blocks more would be available without these leases."""
        counts = Counter(block for lease in leases for block in lease)
        return sum(self._refs[block] == count for block, count in counts.items())

    def check(self) -> None:
        """Assert the law of the pool and that every known hash names the block that bears it."""
        assert len(self._free) + len(self._cached) + self.leased == self.total
        assert len(set(self._free) | set(self._cached)) == len(self._free) + len(self._cached)
        assert all(self._by_hash[digest] == block for block, digest in self._hash_of.items())
        assert len(self._by_hash) == len(self._hash_of)

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, digest = self._cached.popitem(last=False)
            del self._by_hash[digest], self._hash_of[block]
        self._refs[block] = 1
        return block
