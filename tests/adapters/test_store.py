"""What is stored is found by its content, whole or not at all, however many write at once."""

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest

from adapters.errors import Corrupt, Missing, Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.manifest import Manifest
from adapters.store import Store
from tests.adapters.builders import adapter, write

FILES = adapter()


# The lock has neither: `pip install s3fs "moto[server]"` makes all of this run against S3's own protocol too.
S3 = find_spec("s3fs") is not None and find_spec("moto") is not None


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """An S3 bucket on loopback."""
    server = import_module("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").mkdir("lorayard")
        yield "s3://lorayard"
    server.stop()


@pytest.fixture(params=["file", "memory", *(["s3"] if S3 else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """One on the disk, one on a file system that only fsspec knows, and one on S3 where that can be had."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('bucket')}/{name}")
    return Store(f"file://{tmp_path}/store" if request.param == "file" else f"memory://{name}")


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


def stored(store: Store) -> set[str]:
    """Every file in the store but its lock, relative to its root."""
    filesystem, root = fsspec.core.url_to_fs(store.url)
    found = (path.removeprefix(root.rstrip("/") + "/") for path in filesystem.find(root))
    return {path for path in found if path != ".lock"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_version_comes_back_as_it_was_put(store: Store, tmp_path: Path) -> None:
    manifest = store.put(write(tmp_path / "upload", {**FILES, "README.md": b"card"}))
    assert manifest == Manifest.of(tmp_path / "upload")
    assert store.has(manifest.digest)
    assert store.manifest(manifest.digest) == manifest
    assert list(store.digests()) == [manifest.digest]
    assert store.fetch(manifest.digest, tmp_path / "deep" / "cache") == manifest
    assert contents(tmp_path / "deep" / "cache") == FILES


def test_a_sweep_takes_what_no_version_holds_once_it_is_old(store: Store, tmp_path: Path) -> None:
    manifest = store.put(write(tmp_path / "a", FILES))
    whole = stored(store)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    for stray in ("blobs/" + "0" * 64, "incoming/half"):
        filesystem.pipe_file(f"{root}/{stray}", b"x")
    assert store.sweep(older_than=3600) == 0
    assert store.sweep(older_than=-1) == 2
    assert stored(store) == whole
    assert store.fetch(manifest.digest, tmp_path / "b") == manifest


def test_putting_twice_is_as_good_as_once(store: Store, tmp_path: Path) -> None:
    first = store.put(write(tmp_path / "a", FILES))
    before = stored(store)
    assert store.put(write(tmp_path / "b", FILES)) == first
    assert stored(store) == before
    assert len(before) == 3


def test_equal_files_of_different_versions_are_kept_once(store: Store, tmp_path: Path) -> None:
    one = store.put(write(tmp_path / "a", FILES))
    two = store.put(write(tmp_path / "b", {**FILES, CONFIG: b"{}"}))
    assert one.digest != two.digest
    assert len([path for path in stored(store) if path.startswith("blobs/")]) == 3


def test_deleting_one_version_keeps_what_another_shares(store: Store, tmp_path: Path) -> None:
    one = store.put(write(tmp_path / "a", FILES))
    two = store.put(write(tmp_path / "b", {**FILES, CONFIG: b"{}"}))
    store.delete(one.digest)
    assert not store.has(one.digest)
    with pytest.raises(Missing):
        store.fetch(one.digest, tmp_path / "gone")
    store.fetch(two.digest, tmp_path / "kept")
    assert contents(tmp_path / "kept")[WEIGHTS] == FILES[WEIGHTS]
    store.delete(two.digest)
    store.delete(two.digest)
    assert stored(store) == set()


@pytest.mark.parametrize(
    "digest", ["", "sha256:" + "0" * 64, "sha256:../../etc", "0" * 64, "sha256:" + "A" * 64, "sha256:" + "0" * 63]
)
def test_what_is_not_there_is_missing_whatever_its_name(store: Store, digest: str, tmp_path: Path) -> None:
    assert not store.has(digest)
    for act in (store.manifest, lambda digest: store.fetch(digest, tmp_path / "x")):
        with pytest.raises(Missing):
            act(digest)
    store.delete(digest)
    assert not (tmp_path / "x").exists()


def damage(store: Store, name: str, change: Callable[[bytes], bytes | None]) -> str:
    """Change the blob of the file `name` in the one version there is."""
    filesystem, root = fsspec.core.url_to_fs(store.url)
    (digest,) = store.digests()
    (file,) = (file for file in store.manifest(digest).files if file.name == name)
    path = f"{root}/blobs/{file.sha256}"
    changed = change(filesystem.cat_file(path))
    filesystem.rm_file(path)
    if changed is not None:
        filesystem.pipe_file(path, changed)
    return digest


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), Corrupt),
        (lambda raw: raw[:-1], Corrupt),
        (lambda raw: raw + b"x", Corrupt),
        (lambda raw: b"", Corrupt),
        (lambda raw: None, Missing),
    ],
    ids=["one bit", "cut", "longer", "empty", "gone"],
)
def test_a_damaged_blob_is_never_handed_out(
    store: Store, name: str, change: Callable[[bytes], bytes | None], error: type[Exception], tmp_path: Path
) -> None:
    store.put(write(tmp_path / "a", FILES))
    digest = damage(store, name, change)
    with pytest.raises(error):
        store.fetch(digest, tmp_path / "cache")
    assert contents(tmp_path / "cache") == {}


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: None], ids=["cut", "gone"])
def test_putting_again_heals_a_blob_that_was_lost(
    store: Store, change: Callable[[bytes], bytes | None], tmp_path: Path
) -> None:
    store.put(write(tmp_path / "a", FILES))
    digest = damage(store, WEIGHTS, change)
    store.put(tmp_path / "a")
    store.fetch(digest, tmp_path / "cache")
    assert contents(tmp_path / "cache") == FILES


def test_a_manifest_that_was_changed_is_corrupt(local: Store, tmp_path: Path) -> None:
    digest = local.put(write(tmp_path / "a", FILES)).digest
    other = local.put(write(tmp_path / "b", {**FILES, CONFIG: b"{}"}))
    path = tmp_path / "store" / "manifests" / digest.removeprefix("sha256:")
    for content in (b"{}", b"", other.canonical()):
        path.write_bytes(content)
        with pytest.raises(Corrupt):
            local.fetch(digest, tmp_path / "cache")
    local.delete(digest)
    local.fetch(other.digest, tmp_path / "cache")


def test_a_file_that_changes_while_it_is_put_leaves_nothing(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "a", FILES)
    before = Manifest.of(folder)
    (folder / WEIGHTS).write_bytes(FILES[WEIGHTS][:-1] + b"!")
    monkeypatch.setattr(Manifest, "of", lambda folder: before)
    with pytest.raises(Corrupt):
        local.put(folder)
    assert not local.has(before.digest)
    assert not [path for path in stored(local) if path.startswith("incoming/")]


def test_a_link_is_not_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s")
    folder = write(tmp_path / "a", {})
    (folder / CONFIG).symlink_to(tmp_path / "secret")
    with pytest.raises(Rejected):
        store.put(folder)
    assert stored(store) == set()


def test_a_put_that_dies_half_way_leaves_no_version(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "a", FILES)
    with monkeypatch.context() as patched:
        patched.setattr(local._fs, "mv", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            local.put(folder)
    assert stored(local) == set()
    assert local.fetch(local.put(folder).digest, tmp_path / "cache")


def test_a_half_file_is_never_seen_under_its_name(local: Store, tmp_path: Path) -> None:
    """A reader that looks all the time while another fetches again and again sees whole files only."""
    digest = local.put(write(tmp_path / "a", {**FILES, WEIGHTS: (big := bytes(range(256)) * 8192)})).digest
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            for path in (tmp_path / "cache").glob("*.safetensors"):
                seen.add(len(path.read_bytes()))

    (tmp_path / "cache").mkdir()
    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(20):
        local.fetch(digest, tmp_path / "cache")
    stop.set()
    reader.join()
    assert seen <= {len(big)}


def test_many_can_put_the_same_content_at_once(local: Store, tmp_path: Path) -> None:
    folders = [write(tmp_path / f"{number}", FILES) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        manifests = set(pool.map(lambda folder: Store(local.url).put(folder), folders))
    assert len(manifests) == 1
    assert len(stored(local)) == 3


def test_puts_and_deletes_at_once_never_leave_a_version_in_part(local: Store, tmp_path: Path) -> None:
    """Versions share their weights, so that each delete tempts to take another's."""
    folders = [write(tmp_path / f"{number}", {**FILES, CONFIG: b"%d" % number}) for number in range(4)]
    digests = [Manifest.of(folder).digest for folder in folders]

    def churn(number: int) -> None:
        mine = Store(local.url)
        for step in range(12):
            if (number + step) % 3:
                mine.put(folders[(number + step) % 4])
            else:
                mine.delete(digests[(number + 2 * step) % 4])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(churn, range(6)))
    for number, digest in enumerate(local.digests()):
        local.fetch(digest, tmp_path / "cache" / str(number))
    for digest in digests:
        local.delete(digest)
    assert stored(local) == set()


@pytest.mark.skipif(not S3, reason="needs s3fs and moto")
def test_a_server_that_is_away_is_an_os_error(tmp_path: Path) -> None:
    nowhere = {"endpoint_url": "http://127.0.0.1:9", "key": "k", "secret": "s"}
    away = Store("s3://lorayard/away")
    away._fs = fsspec.filesystem("s3", **nowhere, config_kwargs={"retries": {"total_max_attempts": 1}})
    away._fs.retries = 1
    folder = write(tmp_path / "a", FILES)
    digest = Manifest.of(folder).digest
    for act in (
        lambda: away.put(folder),
        lambda: away.has(digest),
        lambda: away.fetch(digest, tmp_path / "b"),
        lambda: away.delete(digest),
        lambda: away.sweep(0),
    ):
        with pytest.raises(OSError, match="does not answer"):
            act()


def test_a_url_of_no_known_kind_is_an_error_at_once() -> None:
    unknown: Any = "nothing-that-exists://bucket"
    with pytest.raises(ValueError, match="nothing-that-exists"):
        Store(unknown)
