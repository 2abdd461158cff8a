"""`manage.py up`, the real thing: it starts, survives what is killed, and leaves nothing behind."""

import contextlib
import json
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.processes import Up, free_port, manage, wait_for


@pytest.fixture
def told(tmp_path: Path, tiny_base_model: Path) -> dict[str, str]:
    """An environment for an `up` of its own."""
    return {
        "LORAYARD_HOME": str(tmp_path / "home"),
        "LORAYARD_PORT": str(free_port()),
        "LORAYARD_BASE_MODEL": str(tiny_base_model),
    }


COMPONENTS = ("database", "redis", "engine", "gateway", "periodic")
KINDS = {
    "up": "manage.py up",
    "postgres": "bin/postgres -D",
    "redis": "redis-server",
    "engine": "-m inference.server",
    "web": "-m config.web",
    "worker": "worker --queues celery",
    "rollouts": "worker --queues rollouts",
    "background": "worker --queues background",
    "merges": "worker --queues merges",
    "webhooks": "worker --queues webhooks",
    "periodic": "worker --queues periodic",
    "beat": "celery -A config beat",
}


def processes_of(told: dict[str, str]) -> list[psutil.Process]:
    """Whatever runs for this home: it was told so, or, for servers that overwrite what they were told, works there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            home = told["LORAYARD_HOME"]
            if process.environ().get("LORAYARD_HOME") == home or process.cwd().startswith(f"{home}/"):
                found.append(process)
    return found


def by_kind(told: dict[str, str]) -> dict[str, psutil.Process]:
    """The first process of each kind: those that the supervisor itself started."""
    found: dict[str, psutil.Process] = {}
    for process in processes_of(told):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            for kind, words in KINDS.items():
                if words in line:
                    found.setdefault(kind, process)
    return found


def one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """It failed, said so in one line, and the line has these words."""
    assert result.returncode not in (0, None)
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words), line


def test_a_port_in_use_is_one_line_and_nothing_runs(told: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(told["LORAYARD_PORT"])))
        taken.listen()
        one_line(manage(told, "up"), "LORAYARD_PORT", told["LORAYARD_PORT"], "in use")
    assert processes_of(told) == []


def test_a_base_model_that_is_not_there_is_one_line(told: dict[str, str], tmp_path: Path) -> None:
    missing = str(tmp_path / "no" / "model")
    one_line(manage(told | {"LORAYARD_BASE_MODEL": missing}, "up"), "LORAYARD_BASE_MODEL", missing)
    assert processes_of(told) == []


def test_a_folder_that_is_no_model_is_one_line(told: dict[str, str], tmp_path: Path) -> None:
    one_line(manage(told | {"LORAYARD_BASE_MODEL": str(tmp_path)}, "up"), "LORAYARD_BASE_MODEL", "config.json")


def test_a_folder_that_cannot_be_written_is_one_line(told: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    home = str(tmp_path / "file" / "home")
    one_line(manage(told | {"LORAYARD_HOME": home}, "up"), "LORAYARD_HOME", home)


def test_a_home_with_something_in_the_way_is_one_line(told: dict[str, str]) -> None:
    home = Path(told["LORAYARD_HOME"])
    home.mkdir()
    (home / "cache").touch()
    one_line(manage(told, "up"), "LORAYARD_HOME", str(home / "cache"))
    assert processes_of(told) == []


def test_a_setting_that_makes_no_sense_is_one_line(told: dict[str, str]) -> None:
    one_line(manage(told | {"LORAYARD_DEVICE": "abacus"}, "up"), "LORAYARD_DEVICE")


def test_a_database_that_does_not_answer_is_one_line(told: dict[str, str], tmp_path: Path) -> None:
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/none"
    result = manage(told | {"DATABASE_URL": url}, "up")
    one_line(result)
    assert "hunter2" not in result.stderr + result.stdout
    assert processes_of(told) == []


@pytest.mark.timeout(300)
def test_it_starts_survives_kills_and_leaves_nothing_behind(told: dict[str, str], tmp_path: Path) -> None:
    home = Path(told["LORAYARD_HOME"])
    url = f"http://127.0.0.1:{told['LORAYARD_PORT']}"

    with Up(told, tmp_path / "up.log") as up:
        up.ready()
        assert httpx.get(f"{url}/readyz", timeout=60).json().keys() >= {
            "status",
            "database",
            "redis",
            "engine",
            "periodic",
        }
        wait_for(lambda: down(url) == [], 60, "all answering in time")

        credentials = json.loads((home / "credentials.json").read_text())
        assert stat.S_IMODE((home / "credentials.json").stat().st_mode) == 0o600
        assert set(credentials["console"]) == {"url", "username", "password"}
        assert set(credentials["tenants"]) == {"acme", "globex"}
        key = credentials["tenants"]["acme"]["api_key"]
        assert key not in up.output
        assert credentials["console"]["password"] not in up.output

        one_line(manage(told, "up"), "LORAYARD_HOME", "already up")
        run_what_was_printed(up.output)
        everything_comes_back(up, told, url)

        models = httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=60)
        assert models.status_code == 200, "the key survived PostgreSQL's kill"

        assert set(by_kind(told)) == set(KINDS)
        assert up.stop(signal.SIGTERM) == 0
        assert processes_of(told) == []
        assert "database system is shut down" in (home / "logs" / "postgres.log").read_text().splitlines()[-1]

    started = time.monotonic()
    with Up(told, tmp_path / "again.log") as again:
        again.ready()
        print(f"ready again after {time.monotonic() - started:.1f} s")
        assert json.loads((home / "credentials.json").read_text()) == credentials
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=60).status_code == 200
        assert set(by_kind(told)) == set(KINDS)
        again.process.kill()
        again.process.wait()
        wait_for(lambda: processes_of(told) == [], 60, "everything ending with its supervisor")


def run_what_was_printed(output: str) -> None:
    """The curl line and the Python snippet, as they stand."""
    lines = output.splitlines()
    (curl,) = (line for line in lines if line.startswith("curl "))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(answer.stdout)["object"] == "chat.completion", answer.stdout
    start = lines.index("import json, openai")
    snippet = "\n".join(lines[start : start + 5])
    subprocess.run([sys.executable, "-c", snippet], timeout=60, check=True, capture_output=True)


def everything_comes_back(up: Up, told: dict[str, str], url: str) -> None:
    """Kills each process in turn without a word; each is there again, and the whole is ready."""
    for kind in [kind for kind in KINDS if kind != "up"]:
        comes_back(told, kind)
    deadline = time.monotonic() + 120
    while (who := down(url)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert who == [], up.output[-5000:]
    assert up.process.poll() is None


def comes_back(told: dict[str, str], kind: str) -> None:
    killed = by_kind(told)[kind]
    killed.kill()
    wait_for(lambda: by_kind(told).get(kind, killed).pid != killed.pid, 60, f"{kind} starting again")


def down(url: str) -> list[str]:
    """Who is not ready."""
    try:
        states = httpx.get(f"{url}/readyz", timeout=60).json()
    except httpx.TransportError:
        return ["web"]
    return [name for name in COMPONENTS if states[name] != "ok"]
