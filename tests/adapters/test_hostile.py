"""Hundreds of uploads that nobody should accept: each is refused with a reason, and nothing of it is left anywhere."""

import gzip
import itertools
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.archive import unpack
from adapters.errors import Rejected
from adapters.files import CONFIG, WEIGHTS
from adapters.limits import Limits
from adapters.validation import validate
from tests.adapters.builders import (
    BASE,
    HIDDEN,
    VOCABULARY,
    Tensors,
    adapter,
    config_bytes,
    container,
    entries,
    magnitudes,
    named,
    tarred,
    tensor_name,
    tensors,
    values,
    weights,
    write,
    zipped,
)

Upload = tuple[str, dict[str, bytes]]
GOOD = adapter()
DATA = b"".join(raw for _, _, raw in tensors().values())
NAMES = list(tensors())
BIAS = "base_layer.bias"


def with_weights(content: bytes) -> dict[str, bytes]:
    return {CONFIG: GOOD[CONFIG], WEIGHTS: content}


def with_header(document: dict[str, Any], data: bytes = DATA) -> dict[str, bytes]:
    return with_weights(container(document, data))


def changed(name: str, **entry: Any) -> dict[str, bytes]:
    document = entries(tensors())
    return with_header({**document, name: {**document[name], **entry}})


def renamed(old: str, new: str) -> dict[str, bytes]:
    return with_header({new if name == old else name: entry for name, entry in entries(tensors()).items()})


def replaced(name: str, dtype: str, shape: tuple[int, ...], raw: bytes) -> dict[str, bytes]:
    made: Tensors = {**tensors(), name: (dtype, shape, raw)}
    return with_weights(weights(made))


def truncated_and_padded() -> Iterator[Upload]:
    good = GOOD[WEIGHTS]
    for length in (0, 1, 7, 8, 9, 20, 100, len(good) // 2, len(good) - 4, len(good) - 1):
        yield f"weights cut to {length}", with_weights(good[:length])
        yield f"config cut to {min(length, 60)}", {CONFIG: GOOD[CONFIG][: min(length, 60)], WEIGHTS: good}
    for padding in (b"\0", b"\0" * 8, b"x" * 1000, b"PK\x05\x06" + bytes(18)):
        yield f"{len(padding)} bytes after the weights", with_weights(good + padding)
        yield f"{len(padding)} bytes before the weights", with_weights(padding + good)
        yield f"{len(padding)} bytes after the config", {CONFIG: GOOD[CONFIG] + b"x" + padding, WEIGHTS: good}


def lying_lengths() -> Iterator[Upload]:
    document, true = entries(tensors()), len(json.dumps(entries(tensors())))
    for length in (
        0,
        1,
        2,
        true - 1,
        true + 1,
        true + 64,
        2**20 + 1,
        2**31,
        2**32 - 1,
        2**53,
        2**63 - 1,
        2**63,
        2**64 - 1,
    ):
        yield f"header length {length}", with_weights(container(document, DATA, length))
    for number, (start, end) in enumerate(
        [(0, 0), (0, 1), (1, 257), (256, 0), (0, 2**40), (2**63 - 256, 2**63), (-256, 0), (0, -1)]
    ):
        yield f"offsets {number}", changed(NAMES[0], data_offsets=[start, end])


def overlapping_and_missing_ranges() -> Iterator[Upload]:
    document = entries(tensors())
    for first, second in itertools.combinations(NAMES[:5], 2):
        if document[first]["shape"] == document[second]["shape"]:
            yield f"{second} lies on {first}", changed(second, data_offsets=document[first]["data_offsets"])
    for shift in (-64, -4, 4, 64):
        for name in NAMES[1:4]:
            start, end = document[name]["data_offsets"]
            yield f"{name} shifted by {shift}", changed(name, data_offsets=[start + shift, end + shift])
    for name in NAMES:
        yield f"without {name}", with_header({key: entry for key, entry in document.items() if key != name})


def duplicated_keys() -> Iterator[Upload]:
    text = json.dumps(entries(tensors()))
    for name in NAMES[:4]:
        doubled = text[:-1] + f', "{name}": ' + json.dumps(entries(tensors())[name]) + "}"
        yield f"{name} twice", with_weights(container(doubled.encode(), DATA))
    for key in ("dtype", "shape", "data_offsets"):
        at = text.index(f'"{key}"')
        yield f"{key} twice", with_weights(container((text[:at] + f'"{key}": 1, ' + text[at:]).encode(), DATA))
    for key in ("r", "lora_alpha", "target_modules", "peft_type"):
        config = GOOD[CONFIG].decode()
        yield f"config's {key} twice", {CONFIG: (config[:-1] + f', "{key}": 8}}').encode(), WEIGHTS: GOOD[WEIGHTS]}


def wrong_types() -> Iterator[Upload]:
    dtype: Any
    for dtype in (
        "F64",
        "I8",
        "U8",
        "I32",
        "I64",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "C64",
        "f32",
        "float32",
        "",
        "F32 ",
        "\0",
        32,
        None,
        [],
        {},
    ):
        yield f"dtype {dtype!r}", changed(NAMES[0], dtype=dtype)
    shape: Any
    for shape in (
        None,
        4,
        "4",
        [],
        [4],
        [4, 16, 1, 1, 1, 1, 1, 1, 1],
        [4.0, 16],
        ["4", 16],
        [True, 64],
        [-4, -16],
        [2**63, 1],
        [[4], 16],
        {},
    ):
        yield f"shape {shape!r}", changed(NAMES[0], shape=shape)
    for entry in ({}, {"dtype": "F32"}, {"evil": 1}):
        document = entries(tensors())
        yield f"entry {entry}", with_header({**document, NAMES[0]: {**entry}})
    metadata: Any
    for metadata in (1, [], "x", {"a": 1}, {"a": {}}, None):
        yield f"metadata {metadata!r}", with_header({"__metadata__": metadata, **entries(tensors())})


def wrong_shapes_and_ranks() -> Iterator[Upload]:
    for shape in ((4, 15), (4, 17), (3, 16), (5, 16), (16, 4), (64,), (2, 2, 16), (4, 16, 1), (0, 16), (300, 16), ()):
        yield f"A of {shape}", replaced(NAMES[0], "F32", shape, values(shape))
    for rank in (0, -1, 257, 1000, 2**31, 2**64, 4.0, "4", None, True, [4]):
        yield f"rank {rank!r}", {CONFIG: config_bytes(r=rank), WEIGHTS: GOOD[WEIGHTS]}
        yield f"rank pattern {rank!r}", {CONFIG: config_bytes(rank_pattern={"q_proj": rank}), WEIGHTS: GOOD[WEIGHTS]}
    alpha: Any
    for alpha in (0, -1, 1e7, 1e308, "8", None, False, [8], {}):
        yield f"alpha {alpha!r}", {CONFIG: config_bytes(lora_alpha=alpha), WEIGHTS: GOOD[WEIGHTS]}
        yield (
            f"alpha pattern {alpha!r}",
            {CONFIG: config_bytes(alpha_pattern={"q_proj": alpha}), WEIGHTS: GOOD[WEIGHTS]},
        )
    for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"0x8", b"08", b"8,", b"'8'"):
        raw = GOOD[CONFIG].replace(b'"lora_alpha": 8', b'"lora_alpha": ' + text)
        yield f"alpha {text[:9]!r} as written", {CONFIG: raw, WEIGHTS: GOOD[WEIGHTS]}


def values_that_are_not_finite() -> Iterator[Upload]:
    for dtype, width, patterns in (
        ("F32", 4, (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF)),
        ("F16", 2, (0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF)),
        ("BF16", 2, (0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF)),
    ):
        for pattern, position in zip(patterns, (0, 1, 31, 62, 63), strict=True):
            raw = bytearray(values((4, HIDDEN), dtype))
            raw[position * width : (position + 1) * width] = pattern.to_bytes(width, "little")
            yield f"{dtype} {pattern:x} at {position}", replaced(NAMES[0], dtype, (4, HIDDEN), bytes(raw))


def what_lies_beside_the_pairs() -> Iterator[Upload]:
    """Magnitudes, biases, embeddings and whole modules that are missing, surplus, misshapen or not finite."""
    q, embedding = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
    whole = named("lm_head", "weight", VOCABULARY, HIDDEN)
    pair = named(embedding, "lora_embedding_A", 4, VOCABULARY) | named(embedding, "lora_embedding_B", HIDDEN, 4)
    variants: dict[str, tuple[dict[str, Any], Tensors]] = {
        "dora": ({"use_dora": True}, magnitudes()),
        "saved": ({"modules_to_save": ["lm_head"]}, whole),
        "embedding": ({"target_modules": ["q_proj", "v_proj", "embed_tokens"]}, pair),
        "bias": (
            {"bias": "all"},
            {k: v for i in (0, 1) for k, v in named(q.replace("0", str(i)), BIAS, HIDDEN).items()},
        ),
    }
    for title, (change, more) in variants.items():
        if title != "saved":  # PEFT saves and loads the head of a resized vocabulary without naming it
            yield f"{title} that the config doesn't name", with_weights(weights({**tensors(), **more}))
        yield f"{title} that the file lacks", {CONFIG: config_bytes(**change), WEIGHTS: GOOD[WEIGHTS]}
        for name, (dtype, shape, raw) in more.items():
            rest = {key: value for key, value in more.items() if key != name}
            for number, wrong in enumerate(
                [(*shape, 1), (shape[0] + 1, *shape[1:]), (0, *shape[1:]), shape[:-1], (2**40,)]
            ):
                bad = {name: (dtype, wrong, values(wrong) if wrong != (2**40,) else raw)}
                upload = weights({**tensors(), **rest, **bad})
                yield f"{title}: {name} of wrong shape {number}", {CONFIG: config_bytes(**change), WEIGHTS: upload}
            for number, bits in enumerate((0x7F800000, 0x7FC00000)):
                spoilt = raw[:-4] + bits.to_bytes(4, "little")
                upload = weights({**tensors(), **rest, name: (dtype, shape, spoilt)})
                yield f"{title}: {name} not finite {number}", {CONFIG: config_bytes(**change), WEIGHTS: upload}
            for number, new in enumerate((f"{name}.weight", name.replace("base_model.", ""), name.upper(), f"{name}2")):
                upload = weights({**tensors(), **rest, new: (dtype, shape, raw)})
                yield f"{title}: {name} renamed {number}", {CONFIG: config_bytes(**change), WEIGHTS: upload}


def strange_names() -> Iterator[Upload]:
    good = NAMES[0]
    for new in (
        "",
        " ",
        "__proto__",
        good + " ",
        " " + good,
        good + "\n",
        good + "\0",
        good.upper(),
        good.replace("q_proj", "Q_proj"),
        good.replace("q_proj", "q_pr\u043ej"),
        good.replace("q_proj", "\uff51_proj"),
        good.replace("q_proj", "q_proj\u200d"),
        good.replace("q_proj", "q\u0332_proj"),
        good.replace(".", "/"),
        good.replace("layers.0", "layers.00"),
        good.replace("layers.0", "layers.-1"),
        good.replace("layers.0", "layers.\u0660"),
        good.replace("layers.0", "layers.2"),
        good.replace("base_model.model.", ""),
        good.replace("base_model.model.", "base_model.model.base_model.model."),
        good.replace("lora_A", "lora_C"),
        good.replace("lora_A", "lora_a"),
        good.replace("lora_A", "lora_A.default"),
        good.replace(".weight", ".bias"),
        good.replace(".weight", ""),
        "../../../etc/passwd",
        "model.layers.0.self_attn.q_proj.weight",
        tensor_name("lm_head", "A"),
        tensor_name("model.embed_tokens", "A"),
        tensor_name("model", "A"),
        "x" * 100_000,
    ):
        yield f"a tensor named {new[:60]!r}", renamed(good, new)
    for name in (
        "adapter_config.json.",
        "ADAPTER_CONFIG.JSON",
        "adapter\u2024config.json",
        "adapter_model.safetensors.index.json",
    ):
        yield f"a file named {name!r}", {WEIGHTS: GOOD[WEIGHTS], name: GOOD[CONFIG]}
    for name in (
        "x.bin",
        "x.pt",
        "x.pth",
        "x.pkl",
        "x.ckpt",
        "x.PT",
        "x.zip",
        "x.tar.gz",
        "x.py",
        "x.so",
        ".env",
        "__init__.py",
    ):
        yield f"{name!r} in place of the weights", {CONFIG: GOOD[CONFIG], name: b"\x80\x04."}


def configs_that_point_at_code() -> Iterator[Upload]:
    for change in (
        {"auto_map": {"AutoModel": "modeling.Evil"}},
        {"custom_code": "import os"},
        {"trust_remote_code": True},
        {"megatron_core": "evil"},
        {"megatron_config": {"a": 1}},
        {"megatron_core": "evil", "megatron_config": {"a": 1}},
        {"chat_template": "{{ ''.__class__ }}"},
        {"__class__": "os.system"},
        {"peft_type": "os.system"},
        {"peft_type": "../LORA"},
        {"task_type": "CAUSAL_LM; import os"},
        {"layers_to_transform": [0], "layers_pattern": "(?:a+)+b"},
        {"target_modules": "(" * 500},
        {"target_modules": "(?:(?:(?:a{999}){999}){999})"},
        {"target_modules": "q_proj|v_proj(?{code})"},
        {"exclude_modules": r"(.*)\1"},
        {"rank_pattern": {"(?P<x>": 4}},
        {"alpha_pattern": {"*": 4}},
        {"eval": "x"},
        {"_target_": "os.system"},
        {"target_parameters": "experts.gate_up_proj"},
        {"target_parameters": ["(?:a+)+b"]},
        {"unknown\u0000key": 1},
    ):
        yield f"config {change}", {CONFIG: config_bytes(**change), WEIGHTS: GOOD[WEIGHTS]}
    for raw in (
        b"",
        b"null",
        b"[]",
        b"1",
        b'"LORA"',
        b"{'r': 8}",
        b"{" * 50_000,
        b"[" * 50_000,
        b"\x80\x04N.",
        b"\xff" * 10,
        b"PK\x03\x04",
    ):
        yield f"config {raw[:9]!r}", {CONFIG: raw, WEIGHTS: GOOD[WEIGHTS]}


def other_formats() -> Iterator[Upload]:
    yield "a zip as weights", with_weights(b"PK\x03\x04" + bytes(500))
    for protocol in (2, 3, 4, 5):
        yield (
            f"a pickle of protocol {protocol}",
            with_weights(bytes([0x80, protocol]) + b"cos\nsystem\n(S'id'\ntR." + bytes(64)),
        )
    yield "a text pickle", with_weights(b"cos\nsystem\n(S'id'\ntR.")
    yield "gzip as weights", with_weights(gzip.compress(GOOD[WEIGHTS]))
    yield "numpy as weights", with_weights(b"\x93NUMPY\x01\0" + bytes(200))
    yield "gguf as weights", with_weights(b"GGUF" + struct.pack("<I", 3) + bytes(200))
    yield "html as weights", with_weights(b"<!doctype html><html></html>")
    yield "an LFS pointer", with_weights(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    yield "zeros as weights", with_weights(bytes(4096))
    yield "nothing at all", {}
    yield "only the config", {CONFIG: GOOD[CONFIG]}
    yield "only the weights", {WEIGHTS: GOOD[WEIGHTS]}
    yield "the two swapped", {CONFIG: GOOD[WEIGHTS], WEIGHTS: GOOD[CONFIG]}


UPLOADS = [
    pytest.param(files, id=f"{make.__name__}: {title}".encode("unicode_escape").decode()[:120])
    for make in (
        truncated_and_padded,
        lying_lengths,
        overlapping_and_missing_ranges,
        duplicated_keys,
        wrong_types,
        wrong_shapes_and_ranks,
        values_that_are_not_finite,
        what_lies_beside_the_pairs,
        strange_names,
        configs_that_point_at_code,
        other_formats,
    )
    for title, files in make()
]


def test_the_upload_that_the_others_are_made_from_is_good(tmp_path: Path) -> None:
    assert len(UPLOADS) >= 300
    validate(write(tmp_path, GOOD), BASE)


@pytest.mark.parametrize("files", UPLOADS)
def test_a_hostile_upload_is_refused_with_a_reason(files: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path, files)
    with pytest.raises(Rejected) as refusal:
        validate(folder, BASE)
    for finding in refusal.value.findings:
        assert finding.rule.replace("-", "").isalpha()
        assert finding.message.endswith(".")
        assert len(finding.message) <= 2_500
    json.dumps([vars(finding) for finding in refusal.value.findings], ensure_ascii=False).encode()
    assert {path.name for path in folder.iterdir()} == set(files)


def hostile_archives(folder: Path) -> Iterator[Path]:
    """Every kind of bad path, link and size, in both formats."""
    paths = ["../x", "/x", "a/../../x", "..", "a\\..\\x", "C:x", "x\r", "a/../x", "\u202ex"]
    for number, path in enumerate(paths):
        for pack, suffix in ((zipped, "zip"), (tarred, "tar.gz")):
            first = [(path.replace("x", CONFIG), GOOD[CONFIG]), (WEIGHTS, GOOD[WEIGHTS])]
            yield pack(folder / f"path{number}.{suffix}", first)
            yield pack(folder / f"last{number}.{suffix}", [*GOOD.items(), (path, b"x")])
    for number, kind in enumerate(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    ):
        for target in ("/etc/passwd", "../../x", CONFIG):
            info = tarfile.TarInfo(WEIGHTS)
            info.type, info.linkname = kind, target
            yield tarred(folder / f"link{number}{len(target)}.tar.gz", [(CONFIG, GOOD[CONFIG]), (info, b"")])
    for number, mode in enumerate((0o120777, 0o010777, 0o020777, 0o060777, 0o140777)):
        special = zipfile.ZipInfo(WEIGHTS)
        special.external_attr = mode << 16
        yield zipped(folder / f"mode{number}.zip", [(CONFIG, GOOD[CONFIG]), (special, b"/etc/passwd")])
    for pack, suffix in ((zipped, "zip"), (tarred, "tar.gz")):
        yield pack(folder / f"bomb.{suffix}", [(CONFIG, GOOD[CONFIG]), (WEIGHTS, bytes(2**25))])
        inner = pack(folder / f"inner.{suffix}", GOOD.items()).read_bytes()
        yield pack(folder / f"nested.{suffix}", [(f"inner.{suffix}", inner)])
        yield pack(folder / f"case.{suffix}", [*GOOD.items(), (CONFIG.upper(), b"{}")])


def test_a_hostile_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    archives = list(hostile_archives(write(tmp_path / "archives", {})))
    assert len(archives) > 60
    untouched = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for archive in archives:
        with pytest.raises(Rejected):
            unpack(archive, tmp_path / "into")
        assert not (tmp_path / "into").exists(), archive.name
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == untouched


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["zip", "tar.gz"]))
def test_a_damaged_archive_gives_the_right_files_or_none(
    seed: int, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, draw = tmp_path_factory.mktemp("damaged"), random.Random(seed)
    path = (zipped if kind == "zip" else tarred)(folder / f"a.{kind}", GOOD.items())
    raw = bytearray(path.read_bytes() if kind == "zip" else gzip.decompress(path.read_bytes()))
    for _ in range(draw.choice([1, 1, 2, 8])):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    if draw.random() < 0.2:
        del raw[draw.randrange(len(raw)) :]
    path.write_bytes(raw if kind == "zip" else gzip.compress(raw, 1))
    try:
        unpack(path, folder / "into")
    except Rejected:
        assert [found.name for found in folder.iterdir()] == [path.name]
    else:
        assert {found.name for found in (folder / "into").iterdir()} == set(GOOD)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_damaged_files_are_refused_or_still_an_adapter(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Damage to a value can leave a good number; anything else ends in a refusal and in no other error."""
    draw = random.Random(seed)
    files = {name: bytearray(content) for name, content in GOOD.items()}
    victim = files[draw.choice([CONFIG, WEIGHTS])]
    head = min(len(victim) - 8, 1_200)
    for _ in range(draw.choice([1, 2, 5])):
        match draw.randrange(3):
            case 0:
                victim[draw.randrange(head)] = draw.randrange(256)
            case 1:
                del victim[draw.randrange(head)]
            case _:
                victim.insert(draw.randrange(head), draw.randrange(256))
    folder = write(tmp_path_factory.mktemp("damaged"), {name: bytes(content) for name, content in files.items()})
    try:
        summary = validate(folder, BASE, Limits())
    except Rejected as refusal:
        found = refusal.findings
    else:
        found = ()
        assert summary.modules == 4
    assert all(finding.message for finding in found)
