"""Knows one request's tokens and how far they are computed; never how they are batched."""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from random import Random

from inference.client import Sampling
from inference.engine import blocks

BASE = -1  # the slot of a sequence that uses no adapter


@dataclass(eq=False)
class Sequence:
    """`tokens` is the prompt and what was generated; KV of the first `computed` of them lies in `blocks`."""

    id: int
    prompt: Seq[int]
    sampling: Sampling
    digest: str = ""
    share: str = ""
    weight: float = 1.0
    salt: str = ""
    priority: int = 0  # within its share, smaller goes first
    start_by: float = math.inf  # on the engine's clock; not admitted by then, it fails
    ends: frozenset[int] = frozenset()  # the tokens that end it
    bad_words: Seq[Seq[int]] = ()  # runs of tokens that it never says
    window: float = math.inf  # tokens that it may be ahead of its reader
    tokens: list[int] = field(init=False)
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    cached: int = 0  # prompt tokens met in the prefix cache when it was first admitted
    slot: int = BASE
    cold: bool = False  # it waited for its adapter
    charged: bool = False
    begun: bool = False  # its first admission was announced
    read: int = 0  # generated tokens that its reader has taken
    stays_until: int = 0  # so many tokens are generated before it gives way to a share that had less
    said: object = None  # what the sampler remembers of its tokens while it runs
    random: Random = field(init=False)
    _hashes: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)
        self.random = Random(self.sampling.seed)  # noqa: S311 - sampling, not secrets
        self._hashes = [blocks.root(self.digest, self.salt)]

    @property
    def remaining(self) -> int:
        """Tokens whose KV is still to be computed: 1 when decoding, more while in prefill."""
        return len(self.tokens) - self.computed

    @property
    def entitled(self) -> bool:
        """To what others hold; whoever may only wait a while, as copies and trials may, takes what is free."""
        return self.start_by == math.inf

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def ahead(self) -> int:
        """Generated tokens that its reader has not taken yet."""
        return self.generated - self.read

    @property
    def left(self) -> int:
        """Tokens that it may still generate."""
        return self.sampling.max_tokens - self.generated

    @property
    def forced(self) -> int | None:
        """The next token, where the request says what it is."""
        forced = self.sampling.forced
        return forced[self.generated] if self.generated < len(forced) else None

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def barred(self) -> set[int]:
        """The tokens that can't be next: the last of a bad word, and an end before min_tokens."""
        words = [word for word in self.bad_words if self._last(len(word) - 1) == list(word[:-1])]
        early = self.ends if self.generated < self.sampling.min_tokens else ()
        return {word[-1] for word in words} | {*early}

    def _last(self, count: int) -> list[int]:
        """So many tokens of the answer, if it has them."""
        return self.tokens[max(len(self.prompt), len(self.tokens) - count) :]

    def ended_by(self, token: int) -> bool:
        return token in self.ends and self.generated >= self.sampling.min_tokens

    def hashes(self, count: int, size: int) -> list[bytes]:
        """The hashes of its first `count` full blocks of `size` tokens."""
        while len(self._hashes) <= count:
            start = (len(self._hashes) - 1) * size
            self._hashes.append(blocks.chain(self._hashes[-1], self.tokens[start : start + size]))
        return self._hashes[1 : count + 1]
