"""Copies on the local disk: bounded, known again after a restart, and never served damaged."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager

import pytest
import torch

from adapters.manifest import Manifest
from inference.lora.disk import DiskCache
from inference.lora.source import Pace
from tests.inference.lora.shelf import Shelf, hanging, loaded


def test_the_disk_is_bounded_and_what_is_read_stays(shelf: Shelf) -> None:
    a, b, c, _ = shelf.digests
    cache = DiskCache(shelf.store, shelf.folder, 2 * shelf.size(a) + 100)
    with cache.open(a) as reading:
        for digest in (b, c):
            with cache.open(digest):
                pass
            assert cache.bytes <= cache.limit
        assert set(cache.sizes()) == {a, c}
        assert (reading / "adapter_model.safetensors").is_file()
    with cache.open(b):
        pass
    assert set(cache.sizes()) == {b, c}
    assert {path.name for path in shelf.folder.glob("sha256-*")} == {d.replace(":", "-") for d in (b, c)}


def test_a_copy_whose_reader_gives_up_while_it_is_hashed_can_make_room(shelf: Shelf) -> None:
    a, b, _, _ = shelf.digests
    loaded(shelf.loader(), a)
    cache = DiskCache(shelf.store, shelf.folder, shelf.size(a) + 100)

    def give_up() -> AbstractContextManager[None]:
        raise RuntimeError("nobody waits any more")

    with pytest.raises(RuntimeError), cache.open(a, give_up):
        pass
    with cache.open(b):
        pass
    assert set(cache.sizes()) == {b}


def test_the_parts_of_a_killed_fetch_are_swept_at_the_start_and_those_of_a_live_one_are_not(shelf: Shelf) -> None:
    fetch = (
        "import sys, time; from pathlib import Path; from inference.lora.disk import DiskCache\n"
        "class Endless:\n"
        "    def manifest(self, digest): return type('M', (), {'size': 1})\n"
        "    def fetch(self, digest, into, *_):\n"
        "        (into / 'half').write_bytes(b'x'); print('fetching', flush=True); time.sleep(60)\n"
        "DiskCache(Endless(), Path(sys.argv[1])).open('sha256:' + '0' * 64).__enter__()"
    )
    with subprocess.Popen([sys.executable, "-c", fetch, str(shelf.folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"fetching\n"
        shelf.loader()
        assert len(list(shelf.folder.glob(".part-*"))) == 1, "a live engine's fetch was swept away"
        process.kill()
    shelf.loader()
    assert not list(shelf.folder.glob(".part-*"))


def test_copies_of_an_earlier_run_are_known_and_the_last_used_stays_longest(shelf: Shelf) -> None:
    a, b, c, _ = shelf.digests
    first = shelf.loader()
    for number, digest in enumerate((a, b, c, a)):
        loaded(first, digest)
        os.utime(shelf.folder / digest.replace(":", "-"), (number, number))
    later = shelf.loader(disk=2 * shelf.size(a))
    assert set(later.cache.sizes()) == {a, c}
    fetches = shelf.store.fetches
    loaded(later, a)
    assert shelf.store.fetches == fetches


@pytest.mark.parametrize("name", [".part-x", ".gone-x", "sha256-" + "0" * 64])
def test_what_another_engine_takes_away_just_when_this_one_starts_is_passed_over(shelf: Shelf, name: str) -> None:
    loaded(shelf.loader(), shelf.digests[0])
    (shelf.folder / name).symlink_to("nowhere")
    assert set(shelf.loader().cache.sizes()) == {shelf.digests[0]}


def test_a_copy_that_was_damaged_between_two_runs_is_fetched_anew(shelf: Shelf) -> None:
    digest = shelf.digests[0]
    good = loaded(shelf.loader(), digest)
    file = shelf.folder / digest.replace(":", "-") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"evil")
    again = loaded(shelf.loader(), digest)
    assert all(torch.equal(a, again.pairs[name][0]) for name, (a, _, _) in good.pairs.items())
    assert all(torch.equal(b, again.pairs[name][1]) for name, (_, b, _) in good.pairs.items())
    assert shelf.store.fetches == 2


def test_a_copy_that_is_verified_is_read_while_another_is_hashed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    known, other, _, _ = shelf.digests
    for digest in (known, other):
        loaded(shelf.loader(), digest)
    loader, hashed = shelf.loader(pace=Pace(timeout=60)), Manifest.of
    loaded(loader, known)
    loader.host.pop(known)
    with hanging() as hang:
        monkeypatch.setattr(Manifest, "of", lambda *asked: (hang(), hashed(*asked))[1])
        waits = loader.load(other)
        assert loaded(loader, known).nbytes
        assert not waits.done()
    assert waits.result(60).nbytes
