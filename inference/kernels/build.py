"""Compiles cpu/ into one library with a plain C ABI. Knows compilers and files; nothing of tensors.

`python -m inference.kernels.build` at install; `library` calls `ensure()` when it is first needed. The file's name
carries a hash of the sources and flags, so a stale one is never loaded. It lies beside the sources, or in the user's
cache where those may not be written. Each ISA is an object of its own; the widest is chosen when the library is loaded.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent / "cpu"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
]
X86 = platform.machine().lower() in {"x86_64", "amd64"}
ISAS: dict[str, list[str]] = {
    **({"avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]} if X86 else {}),
    **({"avx2": ["-mavx2", "-mfma", "-mf16c"]} if X86 else {}),
    "portable": [],
}


class BuildError(Exception):
    """There is no compiler, or it refused; says which."""


def ensure() -> Path:
    """The library for these very sources, compiled first if it isn't there. Raises BuildError."""
    name = f"liblorayard-{_fingerprint()}.so"
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    folder = _writable_folder()
    with _locked(folder):
        if not (folder / name).is_file():
            _compile(folder / name)
            for stale in set(folder.glob("liblorayard-*.so")) - {folder / name}:
                stale.unlink(missing_ok=True)
    return folder / name


def _fingerprint() -> str:
    digest = hashlib.sha256(repr((FLAGS, ISAS, platform.machine())).encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in {".h", ".cpp"}:
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _folders() -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [SOURCES, cache / "lorayard"]


def _writable_folder() -> Path:
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError:
            continue
        return folder
    raise BuildError(f"none of {', '.join(map(str, _folders()))} can be written")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One builder at a time; the lock is the folder's own, and goes with the process that holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _compile(library: Path) -> None:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        raise BuildError("no C++ compiler: neither CXX nor g++, c++ or clang++")
    x86 = ["-DLORAYARD_X86"] if X86 else []
    with tempfile.TemporaryDirectory() as work:
        commands = [
            [
                compiler,
                *FLAGS,
                *isa,
                f"-DLORAYARD_ISA={name}",
                "-c",
                str(SOURCES / "kernels.cpp"),
                "-o",
                f"{work}/{name}.o",
            ]
            for name, isa in ISAS.items()
        ]
        commands.append([compiler, *FLAGS, *x86, "-c", str(SOURCES / "dispatch.cpp"), "-o", f"{work}/dispatch.o"])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        partial = library.with_name(f".{library.stem}.{os.getpid()}.so")
        _run([compiler, *FLAGS, "-shared", *(command[-1] for command in commands), "-o", str(partial)])
    partial.replace(library)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{ensure()}\n")
    except BuildError as error:
        sys.exit(f"The CPU kernels were not built, so the slower torch reference will be used: {error}")
