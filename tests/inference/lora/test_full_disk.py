"""A disk cache that takes no copy does no harm where the store is local."""

import errno
import os

import pytest
import torch

from adapters.errors import Corrupt
from inference.errors import AdapterUnavailable
from inference.lora.disk import DiskCache
from tests.disks import fill, small_disk
from tests.inference.lora.shelf import Shelf, loaded


def test_an_adapter_is_served_from_the_local_store(shelf: Shelf) -> None:
    a = shelf.digests[0]
    expected = loaded(shelf.loader(), a)
    shelf.folder = shelf.folder.with_name("small")
    with small_disk(shelf.folder, 64):
        ballast = fill(shelf.folder)
        loader = shelf.loader()
        served = loaded(loader, a)
        assert (loader.failures, loader.retries) == (0, 0)
        assert loader.cache.sizes() == {}
        assert {path.name for path in shelf.folder.iterdir()} == {".lock", ballast.name}
        for module, pair in expected.pairs.items():
            assert torch.equal(served.pairs[module][0], pair[0])
        loader.close()


def test_room_that_comes_back_is_used(shelf: Shelf) -> None:
    a = shelf.digests[0]
    shelf.folder = shelf.folder.with_name("small")
    with small_disk(shelf.folder, shelf.size(a) // 1024 + 256):
        cache, ballast = DiskCache(shelf.store, shelf.folder), fill(shelf.folder)
        with cache.open(a) as files:
            assert "blobs" in str(files / "adapter_model.safetensors")
        ballast.unlink()
        with cache.open(a) as files:
            assert (files / "adapter_model.safetensors").is_relative_to(shelf.folder)
        assert set(cache.sizes()) == {a}


def test_what_is_read_from_the_store_is_hashed_like_a_copy(shelf: Shelf) -> None:
    a = shelf.digests[0]
    files = shelf.store.files(a)
    assert files is not None
    path = files / "adapter_model.safetensors"
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(Corrupt):
            shelf.store.files(a)
    finally:
        path.write_bytes(whole)  # other tests read from the same store
    with pytest.raises(FileNotFoundError):
        files / "tokenizer.json"


def test_a_store_elsewhere_can_not_be_read_without_a_copy(shelf: Shelf) -> None:
    shelf.store._local = False
    shelf.folder = shelf.folder.with_name("small")
    with small_disk(shelf.folder, 64):
        loader, _ = shelf.loader(), fill(shelf.folder)
        with pytest.raises(AdapterUnavailable, match=os.strerror(errno.ENOSPC)):
            loaded(loader, shelf.digests[0])
        loader.close()
