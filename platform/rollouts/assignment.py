"""Says which arm a unit belongs to: HMAC(salt, unit) mod 10,000 < weight. Knows no rollout, request or database.

The salt stays with the rollout, so that every process, connection and restart says the same, and a growing weight only
ever adds units to the canary (Kohavi et al., Trustworthy Online Controlled Experiments, ch. 4, on bucketing).
"""

import hmac
from dataclasses import dataclass
from typing import Self

BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class Units:
    """Whom a request may be counted to. key is always known; user and conversation only where the request tells."""

    key: str
    user: str = ""
    conversation: str = ""

    def chosen(self, kind: str) -> str:
        """The unit of this kind ("auto", "user", "conversation", "key"), marked with it; the key's where unknown."""
        wanted = ("user", "conversation") if kind == "auto" else (kind,)
        for name in wanted:
            if told := getattr(self, name):
                return f"{name}:{told}"
        return f"key:{self.key}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """bucket: 0 to 9,999. fingerprint: 63 bits that tell units apart and tell nothing else."""

    bucket: int
    fingerprint: int

    @classmethod
    def of(cls, salt: str, unit: str) -> Self:
        mac = hmac.digest(salt.encode(), unit.encode(), "sha256")
        return cls(int.from_bytes(mac[:8]) % BUCKETS, int.from_bytes(mac[8:16]) >> 1)

    def within(self, weight: int) -> bool:
        """Whether it is among the `weight` of 10,000. Whoever is within a weight is within every larger one."""
        return self.bucket < weight
