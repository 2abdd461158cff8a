"""Knows where an adapter's files are: the artifact store, a verified copy on the local disk; never their meaning."""

import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.errors import Corrupt, Missing, Rejected
from adapters.store import Store
from inference.errors import AdapterMissing, AdapterUnavailable
from inference.lora import weights
from inference.lora.weights import AdapterWeights


class DiskCache:
    """Copies of versions' files in `folder`, each named by its digest and verified against it when it was fetched."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """The folder with the version's files, fetched if need be. Raises adapters.errors' Missing and Corrupt."""
        final = self._folder / digest.replace(":", "-")
        if not final.exists():
            part = self._folder / f".{uuid.uuid4().hex}"
            try:
                self._store.fetch(digest, part)
                self._publish(part, final)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return final

    def drop(self, digest: str) -> None:
        shutil.rmtree(self._folder / digest.replace(":", "-"), ignore_errors=True)

    def _publish(self, part: Path, final: Path) -> None:
        try:
            part.rename(final)
        except OSError:
            if not final.exists():  # another thread may have been first, with the same content
                raise


class Loader:
    """Reads adapters in threads of its own, so that no step waits for a disk. Futures fail with inference.errors."""

    def __init__(
        self, cache: DiskCache, base: BaseSpec, frozen: Mapping[str, Tensor], device: torch.device, threads: int = 2
    ) -> None:
        self._cache = cache
        self._base = base
        self._frozen = frozen
        self._device = device
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="adapter-loader")

    def load(self, digest: str) -> Future[AdapterWeights]:
        return self._threads.submit(self._load, digest)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _load(self, digest: str) -> AdapterWeights:
        try:
            return weights.read(self._cache.path(digest), self._base, self._device, self._frozen)
        except Missing as error:
            raise AdapterMissing(f"The artifact store has no version {digest}.") from error
        except Corrupt as error:
            raise AdapterUnavailable(f"The stored files of version {digest} are damaged.") from error
        except Rejected as error:
            raise AdapterUnavailable(
                f"Version {digest} does not fit this base model: {error.findings[0].message}"
            ) from error
