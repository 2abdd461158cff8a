"""An archive gives the two files or nothing at all."""

import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from adapters.archive import unpack
from adapters.base import BaseSpec
from adapters.errors import Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.limits import MIB, Limits
from adapters.validation import validate
from tests.adapters.builders import BASE, adapter, tarred, write, zipped

Pack = Callable[[Path, Iterable[tuple[Any, bytes]]], Path]
BOTH = pytest.mark.parametrize("pack", [zipped, tarred])
FILES = adapter()


def rules(source: Path, tmp_path: Path, limits: Limits | None = None) -> tuple[str, ...]:
    """The refusal's codes; whatever the archive, nothing may be left and nothing beside may be touched."""
    bystander = write(tmp_path / "target", {"bystander": b"mine"})
    for into in (tmp_path / "target", tmp_path / "new"):
        with pytest.raises(Rejected) as refusal:
            unpack(source, into, limits or Limits())
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([source.name, "target", "bystander"])
    assert (bystander / "bystander").read_bytes() == b"mine"
    return refusal.value.rules


@BOTH
@pytest.mark.parametrize("prefix", ["", "./", "my-adapter/", "./my-adapter/"])
def test_the_two_files_come_out_as_they_went_in(pack: Pack, prefix: str, tmp_path: Path) -> None:
    source = pack(tmp_path / "a", [(prefix + name, content) for name, content in FILES.items()])
    assert unpack(source, tmp_path / "out") == ()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES
    assert stat.S_IMODE((tmp_path / "out" / CONFIG).stat().st_mode) == 0o600
    validate(tmp_path / "out", BASE)


@BOTH
def test_the_model_card_and_what_macos_adds_are_dropped(pack: Pack, tmp_path: Path) -> None:
    extra = {"README.md": b"card", "__MACOSX/._adapter_config.json": b"x", ".DS_Store": b"x", "._README.md": b"x"}
    assert unpack(pack(tmp_path / "a", {**extra, **FILES}.items()), tmp_path / "out") == ("README.md",)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)


TRAINERS = {
    "tokenizer": ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"],
    "trainer": ["trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"],
    "llama-factory": ["all_results.json", "trainer_log.jsonl", "training_loss.png", "Modelfile"],
    "clone": [
        ".gitattributes",
        ".git/objects/ab/cd",
        ".git/HEAD",
        "runs/Dec01_10:00:00_host/events.out.tfevents.1.h.0",
    ],
    "another language": ["\u8bfb\u6211.md", "modeling.py", "inner.zip", "model.gguf", "adapter_model.bin"],
    "checkpoints": [f"checkpoint-{n}/{name}" for n in (100, 200) for name in (CONFIG, WEIGHTS, "optimizer.pt")],
    "other adapters": [f"second/{CONFIG}", f"second/{WEIGHTS}", f"second/third/{WEIGHTS}"],
}


@BOTH
@pytest.mark.parametrize("top", ["", "checkpoint-500/", "home/user/out/run-1/"])
@pytest.mark.parametrize("kind", TRAINERS)
def test_what_trainers_and_clones_leave_beside_the_adapter_is_left_out_and_named(
    pack: Pack, kind: str, top: str, tmp_path: Path
) -> None:
    beside = [(top + name, b"\x80\x04 never opened") for name in TRAINERS[kind]]
    own = [(top + name, content) for name, content in FILES.items()]
    assert unpack(pack(tmp_path / "a", [*beside, *own]), tmp_path / "out") == tuple(name for name, _ in beside)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES


@BOTH
def test_of_several_adapters_with_none_above_the_others_the_names_are_told(pack: Pack, tmp_path: Path) -> None:
    folders = ["out/checkpoint-100", "out/checkpoint-200"]
    source = pack(tmp_path / "a", [(f"{folder}/{name}", FILES[name]) for folder in folders for name in FILES])
    with pytest.raises(Rejected) as refusal:
        unpack(source, tmp_path / "out")
    (found,) = refusal.value.findings
    assert (found.rule, found.found) == ("several-adapters", ", ".join(folders))


@BOTH
def test_one_adapter_among_files_elsewhere_is_the_one(pack: Pack, tmp_path: Path) -> None:
    members = [("out/config.json", b"{}"), (f"out/{CONFIG}", b"{}"), *((f"out/last/{n}", c) for n, c in FILES.items())]
    assert unpack(pack(tmp_path / "a", members), tmp_path / "out") == ("out/config.json", f"out/{CONFIG}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == FILES


@BOTH
@pytest.mark.parametrize(
    ("names", "rules_"),
    [
        ([CONFIG, "adapters.safetensors"], ("mlx-format",)),
        ([CONFIG, "0000100_adapters.safetensors"], ("mlx-format",)),
        (["adapters.npz"], ("mlx-format",)),
        (["adapter.gguf"], ("gguf-format",)),
        ([CONFIG, "ggml-adapter-model.gguf"], ("gguf-format",)),
        ([CONFIG, "adapter_model.bin"], ("pickle",)),
        (["adapter_model.bin"], ("pickle", "missing-file")),
        (["config.json", "model.safetensors"], ("whole-model",)),
        (["inner.zip"], ("nested-archive",)),
        (["optimizer.pt", "notes.txt"], ("missing-file", "missing-file")),
        ([f"a/{CONFIG}", f"b/{WEIGHTS}"], ("path",)),
    ],
)
def test_other_formats_are_known_by_name(pack: Pack, names: list[str], rules_: tuple[str, ...], tmp_path: Path) -> None:
    assert rules(pack(tmp_path / "a", [(name, b"{}") for name in names]), tmp_path) == rules_


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_files_made_from_a_folder_are_taken_in_every_format(format: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "my-adapter", FILES)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", format=format) as archive:
        archive.add(folder, arcname="my-adapter")
    unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", {WEIGHTS: b"mine"})
    with pytest.raises(FileExistsError):
        unpack(zipped(tmp_path / "a.zip", FILES.items()), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {WEIGHTS: b"mine"}


@BOTH
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("../adapter_config.json", "path"),
        ("a/../../adapter_config.json", "path"),
        ("a/../adapter_config.json", "path"),
        ("..", "path"),
        ("/etc/passwd", "path"),
        ("/adapter_config.json", "path"),
        ("//server/adapter_config.json", "path"),
        ("C:adapter_config.json", "path"),
        ("C:\\adapter_config.json", "path"),
        ("..\\adapter_config.json", "path"),
        ("adapter_config.json\n", "path"),
        ("adapter_config\u200b.json", "path"),
        ("a" * 1001, "path"),
        ("ADAPTER_CONFIG.JSON", "duplicate-name"),
        ("Adapter_Model.safetensors", "duplicate-name"),
    ],
)
def test_a_member_with_another_name_is_refused(pack: Pack, name: str, rule: str, tmp_path: Path) -> None:
    assert rules(pack(tmp_path / "a", [*FILES.items(), (name, b"{}")]), tmp_path) == (rule,)


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", [*FILES.items(), ("README_md", b"{}")])
    good = source.read_bytes()
    for name in (b"README\0md", b"\0EADME_md"):
        source.write_bytes(good.replace(b"README_md", name))
        assert rules(source, tmp_path) == ("path",)


@BOTH
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_file_that_comes_twice_is_refused(pack: Pack, tmp_path: Path) -> None:
    assert rules(pack(tmp_path / "a", [*FILES.items(), *FILES.items()]), tmp_path) == ("duplicate-name",)


@BOTH
@pytest.mark.parametrize("absent", FILES)
def test_a_missing_file_is_named(pack: Pack, absent: str, tmp_path: Path) -> None:
    source = pack(tmp_path / "a", [(name, content) for name, content in FILES.items() if name != absent])
    assert rules(source, tmp_path) == ("missing-file",)


@BOTH
def test_an_archive_with_very_many_members_is_refused(pack: Pack, tmp_path: Path) -> None:
    source = pack(tmp_path / "a", [(f"._{number}", b"") for number in range(20)])
    assert rules(source, tmp_path, Limits(members=19)) == ("too-many-members",)


LINKS = {
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
    "fifo": tarfile.FIFOTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "contiguous": tarfile.CONTTYPE,
    "unknown": b"Z",
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", [CONFIG, "README.md", "other"])
def test_a_tar_member_that_is_no_plain_file_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = LINKS[kind], "/etc/passwd"
    source = tarred(tmp_path / "a.tar.gz", [(info, b""), *((n, c) for n, c in FILES.items() if n != name)])
    assert rules(source, tmp_path) == ("link",)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_zip_member_that_is_no_plain_file_is_refused(mode: int, tmp_path: Path) -> None:
    info = zipfile.ZipInfo(CONFIG)
    info.external_attr = (mode | 0o777) << 16
    assert rules(zipped(tmp_path / "a.zip", [(info, b"/etc/passwd")]), tmp_path) == ("link",)


@BOTH
def test_a_bomb_is_stopped_by_its_ratio(pack: Pack, tmp_path: Path) -> None:
    source = pack(tmp_path / "a", [(CONFIG, FILES[CONFIG]), (WEIGHTS, bytes(64 * MIB))])
    assert source.stat().st_size < MIB
    assert rules(source, tmp_path) == ("archive-bomb",)


@BOTH
def test_a_bomb_in_a_file_that_would_be_dropped_is_stopped_too(pack: Pack, tmp_path: Path) -> None:
    assert rules(pack(tmp_path / "a", [("README.md", bytes(64 * MIB))]), tmp_path) == ("archive-bomb",)


@BOTH
def test_what_unpacks_to_more_than_the_limit_is_too_large(pack: Pack, tmp_path: Path) -> None:
    source = pack(tmp_path / "a", FILES.items())
    assert rules(source, tmp_path, Limits(total=100)) == ("too-large",)


def test_a_small_text_may_shrink_as_much_as_it_likes(tmp_path: Path) -> None:
    unpack(zipped(tmp_path / "a.zip", [(CONFIG, b" " * MIB), (WEIGHTS, b"")]), tmp_path / "out")


def test_a_tar_header_cannot_make_memory_grow(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 64 * MIB
    raw = info.tobuf() + b"a" * info.size
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 64 * MIB
    for hostile in (raw, pax.tobuf() + b"1" * pax.size):
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(hostile))
        tracemalloc.start()
        assert rules(tmp_path / "a.tar.gz", tmp_path) == ("header-too-large",)
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
        tracemalloc.stop()


def test_a_zip_directory_cannot_make_memory_grow(tmp_path: Path) -> None:
    source = zipped(tmp_path / "a.zip", ((f"._{number}", b"") for number in range(5_000)))
    assert rules(source, tmp_path, Limits(members=16)) == ("too-many-members",)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    raw = bytearray(zipped(tmp_path / "a.zip", FILES.items()).read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(magic) + offset] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    assert rules(tmp_path / "a.zip", tmp_path) == ("encrypted",)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_rare_compressions_are_refused(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    assert rules(tmp_path / "a.zip", tmp_path) == ("malformed-archive",)


def test_names_that_differ_between_a_zip_s_two_directories_are_refused(tmp_path: Path) -> None:
    raw = zipped(tmp_path / "a.zip", [*FILES.items(), ("README.md", b"x")]).read_bytes()
    at = raw.index(b"README.md")
    (tmp_path / "a.zip").write_bytes(raw[:at] + b"../../evi" + raw[at + 9 :])
    assert rules(tmp_path / "a.zip", tmp_path) == ("malformed-archive",)


def test_a_size_that_a_zip_lies_about_is_refused(tmp_path: Path) -> None:
    raw = bytearray(zipped(tmp_path / "a.zip", FILES.items()).read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", 10)
    (tmp_path / "a.zip").write_bytes(raw)
    assert rules(tmp_path / "a.zip", tmp_path) == ("malformed-archive",)


@BOTH
def test_every_truncation_is_refused(pack: Pack, tmp_path: Path) -> None:
    raw = pack(tmp_path / "a", FILES.items()).read_bytes()
    for length in [*range(0, 40), *range(40, len(raw), 211), len(raw) - 1]:
        (tmp_path / "a").write_bytes(raw[:length])
        assert rules(tmp_path / "a", tmp_path), length


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"PK\x05\x06" + bytes(18),
        b"\x1f\x8b",
        b"{}",
        b"7z\xbc\xaf\x27\x1c",
        b"Rar!\x1a\x07",
        b"\x80\x04}.",
        bytes(1024),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert set(rules(tmp_path / "a", tmp_path)) <= {"unknown-archive", "malformed-archive"}


def test_a_plain_tar_is_refused_since_it_was_not_asked_for(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    assert rules(tmp_path / "a.tar", tmp_path) == ("unknown-archive",)


def test_something_after_the_last_member_of_a_tar_is_refused(tmp_path: Path) -> None:
    plain = gzip.decompress(tarred(tmp_path / "a.tar.gz", FILES.items()).read_bytes())
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain + b"smuggled"))
    assert rules(tmp_path / "a.tar.gz", tmp_path) == ("malformed-archive",)


def test_a_link_to_an_archive_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "elsewhere", {})
    (tmp_path / "a.zip").symlink_to(zipped(folder / "real.zip", FILES.items()))
    with pytest.raises(Rejected) as refusal:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert refusal.value.rules == ("link",)


def test_an_archive_that_is_both_zip_and_safetensors_is_read_as_one_thing_only(tmp_path: Path) -> None:
    polyglot = FILES[WEIGHTS] + zipped(tmp_path / "a.zip", FILES.items()).read_bytes()
    (tmp_path / "a.zip").write_bytes(polyglot)
    assert rules(tmp_path / "a.zip", tmp_path) == ("unknown-archive",)
    (tmp_path / "a.zip").unlink()
    base: BaseSpec = BASE
    with pytest.raises(Rejected) as refusal:
        validate(write(tmp_path / "b", {CONFIG: FILES[CONFIG], WEIGHTS: polyglot}), base)
    assert refusal.value.rules == ("trailing-bytes",)
