"""A store whose versions can be made to give trouble, and loaders over it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from adapters.manifest import Manifest, Turn
from adapters.store import Store
from inference.lora.disk import DiskCache
from inference.lora.source import Loader, Pace
from inference.lora.weights import AdapterWeights
from inference.models.load import Model

CPU = torch.device("cpu")
BRISK = Pace(timeout=60, pause=0.01)


class TroubledStore(Store):
    """A real store, some of whose versions give trouble: what `trouble[digest]` does happens before each manifest is
    read, `slowly` before each chunk of that version."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.trouble: dict[str, Callable[[], None]] = {}
        self.slowly: dict[str, float] = {}
        self.fetches = 0

    def manifest(self, digest: str) -> Manifest:
        self.fetches += 1
        self.trouble.get(digest, lambda: None)()
        return super().manifest(digest)

    def fetch(self, digest: str, into: Path, manifest: Manifest | None = None, turn: Turn = nullcontext) -> Manifest:
        def dawdle() -> AbstractContextManager[None]:
            while digest in self.slowly:
                time.sleep(0.02)
                with turn():
                    pass
            return turn()

        return super().fetch(digest, into, manifest, dawdle)


class Shelf:
    """A store with adapters of one base, and engines' caches and loaders over it."""

    def __init__(self, store: str, folder: Path, model: Model, digests: list[str]) -> None:
        self.model = model
        self.digests = digests
        self.store = TroubledStore(store)
        self.folder = folder

    def loader(self, disk: int = 1 << 40, host: int = 1 << 40, largest: int = 1 << 40, pace: Pace = BRISK) -> Loader:
        cache = DiskCache(self.store, self.folder, disk)
        spec, frozen = self.model.spec, self.model.sites.frozen
        return Loader(cache, spec, frozen, CPU, host_limit=host, largest=largest, pace=pace)

    def size(self, digest: str) -> int:
        return Store(self.store.url).manifest(digest).size


def loaded(loader: Loader, digest: str) -> AdapterWeights:
    return loader.load(digest).result(60)


@contextmanager
def hanging() -> Iterator[Callable[[], None]]:
    gate = threading.Event()

    def hang() -> None:
        gate.wait(60)

    yield hang
    gate.set()
