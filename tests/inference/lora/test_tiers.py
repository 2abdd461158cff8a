"""From the artifact store to the device and back: each tier bounded, each fault its own adapter's alone."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.store import Store
from inference.errors import AdapterMissing, AdapterUnavailable, EngineError
from inference.lora.source import Loader, Pace
from tests.inference.lora.shelf import Shelf, hanging, loaded


def refused(loader: Loader, digest: str) -> EngineError:
    error = loader.load(digest).exception(60)
    assert isinstance(error, EngineError), error
    return error


def breaking(error: Exception, times: int) -> Callable[[], None]:
    left = iter([error] * times)

    def trouble() -> None:
        if (due := next(left, None)) is not None:
            raise due

    return trouble


def test_a_version_is_fetched_once_read_once_and_then_on_the_host(shelf: Shelf) -> None:
    loader, digest = shelf.loader(), shelf.digests[0]
    first, again = loaded(loader, digest), loaded(loader, digest)
    assert first is again
    host, disk = loader.host.tally, loader.cache.tally
    assert (host.hits, host.misses, host.loads) == (1, 1, 1)
    assert (disk.misses, disk.loads, shelf.store.fetches) == (1, 1, 1)
    assert loader.host.sizes() == {digest: first.nbytes}
    assert loader.cache.sizes() == {digest: shelf.size(digest)}
    assert 0 < disk.seconds < 60
    loader.host.pop(digest)
    loaded(loader, digest)
    assert (disk.hits, shelf.store.fetches) == (1, 1)


def test_a_load_under_way_is_not_begun_twice(shelf: Shelf) -> None:
    loader = shelf.loader()
    with hanging() as hang:
        shelf.store.trouble[shelf.digests[0]] = hang
        assert loader.load(shelf.digests[0]) is loader.load(shelf.digests[0])


def test_host_memory_is_bounded_and_the_least_recently_used_goes_first(shelf: Shelf) -> None:
    size = loaded(shelf.loader(), shelf.digests[0]).nbytes
    loader = shelf.loader(host=2 * size)
    a, b, c, _ = shelf.digests
    for digest in (a, b, a, c):
        loaded(loader, digest)
        assert loader.host.bytes <= loader.host.limit
    assert set(loader.host.sizes()) == {a, c}
    assert loader.host.tally.evictions == 1
    assert shelf.loader(host=size - 1).load(a).result(60).nbytes == size


def test_what_no_tier_can_hold_is_refused_with_both_sizes(shelf: Shelf) -> None:
    for loader in (shelf.loader(disk=100), shelf.loader(largest=100)):
        error = refused(loader, shelf.digests[0])
        assert isinstance(error, AdapterUnavailable)
        assert error.message.count("MiB") == 2
        assert loader.retries == 0


@pytest.mark.parametrize("error", [ConnectionError("reset"), TimeoutError(), OSError(5, "Input/output error")])
def test_a_passing_fault_is_tried_again(shelf: Shelf, error: Exception) -> None:
    loader, digest = shelf.loader(), shelf.digests[0]
    shelf.store.trouble[digest] = breaking(error, 2)
    assert loaded(loader, digest).nbytes
    assert (loader.retries, loader.failures) == (2, 0)


def test_a_fault_that_lasts_is_told_after_the_last_attempt(shelf: Shelf) -> None:
    loader, digest = shelf.loader(), shelf.digests[0]
    shelf.store.trouble[digest] = breaking(ConnectionError("reset"), 99)
    assert isinstance(refused(loader, digest), AdapterUnavailable)
    assert (loader.retries, loader.failures) == (2, 1)


def test_what_will_not_pass_is_not_tried_again(shelf: Shelf) -> None:
    loader = shelf.loader()
    assert isinstance(refused(loader, "sha256:" + "0" * 64), AdapterMissing)
    shelf.store.trouble[shelf.digests[0]] = breaking(PermissionError(13, "Permission denied"), 99)
    assert "Permission denied" in refused(loader, shelf.digests[0]).message
    assert loader.retries == 0


def test_a_store_that_hangs_fails_its_own_version_in_time_and_holds_up_no_other(shelf: Shelf) -> None:
    hung, other, known, _ = shelf.digests
    loaded(shelf.loader(), known)
    loader = shelf.loader(pace=Pace(timeout=2, pause=0.01, fetching=1))
    with hanging() as hang:
        shelf.store.trouble[hung] = hang
        late = loader.load(hung)
        behind = loader.load(other)
        assert loaded(loader, known).nbytes, "what is on the disk waited for the store"
        assert not late.done()
        assert isinstance(late.exception(60), AdapterUnavailable)
        assert behind.result(60).nbytes
    assert "2 s" in refused_message(late)


def refused_message(future: Any) -> str:
    error = future.exception()
    assert isinstance(error, EngineError)
    return error.message


def test_a_store_that_trickles_is_given_up_and_left_alone(shelf: Shelf) -> None:
    loader, digest = shelf.loader(pace=Pace(timeout=0.3)), shelf.digests[0]
    shelf.store.slowly[digest] = 1
    assert isinstance(refused(loader, digest), AdapterUnavailable)
    deadline = time.monotonic() + 60
    while any(thread.name == "adapter-fetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread goes on"
        time.sleep(0.02)
    assert not list(shelf.folder.glob(".part-*"))
    assert loader.cache.bytes == 0


def test_dropping_a_version_frees_host_and_disk_and_what_is_under_way_is_not_kept(shelf: Shelf) -> None:
    loader, (a, b, _, _) = shelf.loader(), shelf.digests
    loaded(loader, a)
    loader.drop(a)
    with hanging() as hang:
        shelf.store.trouble[b] = hang
        coming = loader.load(b)
        loader.drop(b)
    assert coming.result(60).nbytes
    assert (loader.host.bytes, loader.cache.bytes, loader.cache.sizes()) == (0, 0, {})
    assert [path.name for path in shelf.folder.iterdir()] == [".lock"]


def test_what_is_dropped_just_when_it_has_come_is_not_kept(shelf: Shelf) -> None:
    cache, dropped = shelf.loader().cache, iter([True, False])
    with cache.open(shelf.digests[0], keep=lambda: next(dropped)):
        pass
    assert cache.sizes() == {}
    assert [path.name for path in shelf.folder.iterdir()] == [".lock"]


def test_reading_an_adapter_does_not_stop_the_batch_and_a_hanging_one_fails_alone(shelf: Shelf, workshop: Any) -> None:
    hung, fine, _, _ = shelf.digests
    driver = workshop.engine(workshop.base("qwen2"), load_with=shelf.loader().load)
    base = driver.submit([5, 6, 7], max_tokens=200)

    def until(condition: Callable[[], object]) -> None:
        while not condition():
            if not driver.engine.step():
                time.sleep(0.001)

    with hanging() as hang:

        def hang_and_break() -> None:
            hang()
            raise PermissionError(13, "Permission denied")

        shelf.store.trouble[hung] = hang_and_break
        waits, other = driver.submit([5, 6, 7], hung), driver.submit([5, 6, 7], fine)
        until(lambda: driver.ended(base) and driver.ended(other))
        assert driver.ended(waits) is None
    until(lambda: driver.ended(waits))
    assert len(driver.tokens(base)) == 200
    assert len(driver.tokens(other)) == 8
    assert isinstance(driver.ended(waits).error, AdapterUnavailable)


UNLOADING = """
import gc, json, sys, time
from pathlib import Path
import psutil, torch
from adapters.store import Store
from inference.lora.arena import Arena
from inference.lora.disk import DiskCache
from inference.lora.source import Loader, Pace
from tests.inference.conftest import Base, Workshop

base, folder, url, *digests = sys.argv[1:]
arena = Arena(64 << 20, torch.device("cpu"))
driver = Workshop(Path(folder)).engine(Base(Path(base)), load_with=lambda digest: loader.load(digest), room=arena)
disk, model = DiskCache(Store(url), Path(folder, "cache")), driver.model
loader = Loader(disk, model.spec, model.sites.frozen, model.device, pace=Pace(timeout=60, pause=0.01))
memory = lambda: psutil.Process().memory_info().rss

def cycle():
    answers = [driver.submit([5, 6, 7], digest, max_tokens=1) for digest in digests]
    while driver.engine.step() or driver.scheduler.live:
        time.sleep(0.001)
    assert all(driver.ended(sequence).error is None for sequence in answers)
    held, full = arena.leased * arena.page + loader.host.bytes, memory()
    for digest in digests:
        driver.slots.evict(digest)
        loader.drop(digest)
    assert (arena.free, arena.leased, loader.host.bytes, loader.cache.bytes) == (arena.total, 0, 0, 0)
    gc.collect()
    return held, full - memory(), memory()

print(json.dumps([cycle() for _ in range(6)]))
"""


def test_unloading_gives_pages_host_memory_and_the_process_memory_back_cycle_after_cycle(
    workshop: Any, tmp_path: Path
) -> None:
    """Other engines only forget the name. Three are loaded, used and unloaded, in a process of its own: what the rest
    of this one's threads allocate meanwhile is not measured."""
    base = workshop.base("qwen2")
    url = f"file://{tmp_path}/store"
    config = {"r": 256, "target_modules": "all-linear"}
    adapters = [workshop.uploadable(workshop.adapter(base, f"cycle-{n}", **config)) for n in range(3)]
    told = [str(base.folder), str(tmp_path), url, *(Store(url).put(adapter).digest for adapter in adapters)]
    command = [sys.executable, "-c", UNLOADING, *told]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cycles = json.loads(done.stdout)
    for held, freed, _ in cycles:
        assert held > 12 << 20
        assert freed > 0.8 * held, f"{freed >> 20} MiB of {held >> 20} were given back"
    held, _, before = cycles[1]
    assert cycles[-1][2] < before + held / 2, "memory grew"
