"""The repository's shape: what would break in ways that hide."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
APPS = {init.parent.name for init in (ROOT / "platform").glob("*/__init__.py")}


def test_platform_is_a_folder_of_sources_and_never_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "tests" / "platform").exists()


def test_a_fresh_interpreter_in_the_root_gets_the_standard_librarys_platform() -> None:
    code = "import platform, sys; print(platform.__file__); assert platform.python_version()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()).name == "platform.py"


def test_so_does_one_with_both_source_roots_on_its_path() -> None:
    code = (
        "import sys; sys.path[:0] = ['.', 'platform']; import platform, uuid, config.env; "
        "assert platform.python_version(); print(config.env.__file__)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == ROOT / "platform" / "config" / "env.py"


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_the_wheel_holds_every_app_exactly_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "base")
    for name in ("adapters", "inference", "platform"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
        else:
            (source / name).touch()
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if not name.startswith("lorayard-")}
    assert packages == APPS | {"adapters", "inference"}
    for app in APPS:
        assert [name for name in names if name.endswith(f"{app}/__init__.py")] == [f"{app}/__init__.py"]


def test_the_lock_pins_everything_and_names_no_place() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert "torch==2.13.0" in lines
    for line in lines:
        name, pinned, version = line.partition("==")
        assert all((name, pinned, version)), line
        assert not set("+@/ ;") & set(line), line


def test_the_containers_publish_one_port_on_loopback_alone() -> None:
    composed = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    services = composed["services"]
    workers = {"worker", "rollouts", "background", "merges", "webhooks", "periodic", "beat"}
    assert {"postgres", "redis", "engine", "web"} | workers <= set(services)
    assert {name: service["ports"] for name, service in services.items() if "ports" in service} == {
        "web": ["127.0.0.1:8000:8000"]
    }
    assert set(composed["secrets"]) >= {"SECRET_KEY", "LORAYARD_PEPPER", "LORAYARD_ENGINE_SECRET", "POSTGRES_PASSWORD"}


def test_every_decision_stands_in_their_index_by_its_title() -> None:
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    for page in sorted(folder.glob("0*.md")):
        title = page.read_text().splitlines()[0].removeprefix("# ")
        assert f"- [{title}]({page.name})" in index
