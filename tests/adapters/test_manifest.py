import hashlib
from pathlib import Path

import pytest

from adapters.errors import Corrupt, Rejected
from adapters.manifest import File, Manifest, is_digest
from tests.adapters.builders import adapter, write

HEX = "0" * 64


def test_equal_files_have_equal_digests_wherever_they_are(tmp_path: Path) -> None:
    files = adapter()
    first = Manifest.of(write(tmp_path / "a", files))
    second = Manifest.of(write(tmp_path / "b", dict(reversed(files.items()))))
    assert first.digest == second.digest
    assert is_digest(first.digest)
    assert first.digest == "sha256:" + hashlib.sha256(first.canonical()).hexdigest()
    assert first.size == sum(map(len, files.values()))


def test_one_changed_bit_or_name_changes_the_digest(tmp_path: Path) -> None:
    original = Manifest.of(write(tmp_path / "a", {"x.json": b"one"})).digest
    assert Manifest.of(write(tmp_path / "b", {"x.json": b"onf"})).digest != original
    assert Manifest.of(write(tmp_path / "c", {"y.json": b"one"})).digest != original


def test_the_model_card_is_no_part_of_the_digest(tmp_path: Path) -> None:
    plain = Manifest.of(write(tmp_path / "a", adapter()))
    assert Manifest.of(write(tmp_path / "b", {**adapter(), "README.md": b"# hello"})) == plain


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = write(tmp_path / "a", {})
    (folder / "adapter_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(Rejected) as refusal:
        Manifest.of(folder)
    assert refusal.value.rules == ("link",)


def test_a_manifest_is_read_back_from_its_canonical_form(tmp_path: Path) -> None:
    manifest = Manifest.of(write(tmp_path, adapter()))
    assert Manifest.parse(manifest.canonical()) == manifest


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"files":[],"version":1}',
        b'{"files":[{"name":"../x","sha256":"%s","size":1}],"version":1}' % HEX.encode(),
        b'{"files":[{"name":"x","sha256":"abc","size":1}],"version":1}',
        b'{"files":[{"name":"x","sha256":"%s","size":-1}],"version":1}' % HEX.encode(),
        b'{"files":[{"name":"x","sha256":"%s","size":1.0}],"version":1}' % HEX.encode(),
        b'{"files": [{"name":"x","sha256":"%s","size":1}],"version":1}' % HEX.encode(),
        b'{"files":[{"name":"x","sha256":"%s","size":1}],"version":2}' % HEX.encode(),
        b'{"files":[{"mode":1,"name":"x","sha256":"%s","size":1}],"version":1}' % HEX.encode(),
        b"[" * 100_000,
    ],
)
def test_other_bytes_are_no_manifest(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        Manifest.parse(raw)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a\0", "ü", "x" * 200])
def test_a_file_with_a_dangerous_name_cannot_be_listed(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        File(name, 1, HEX)


def test_a_manifest_needs_files_and_names_each_once() -> None:
    with pytest.raises(ValueError, match="without"):
        Manifest(())
    with pytest.raises(ValueError, match="twice"):
        Manifest((File("x", 1, HEX), File("x", 2, HEX)))
