"""The OpenAPI page against a platform that runs: schemathesis makes requests of its shapes, and others."""

import subprocess
import sys
from pathlib import Path

import httpx

from tests.processes import Platform, environment

CONFIG = Path(__file__).with_name("schemathesis.toml")
# A key that ends or replaces itself would leave only 401 to be seen.
ITS_OWN_END = r"/keys/\{id\}/(revoke|rotate)$"


def findings(platform: Platform, key: str, seconds: int, folder: Path, *arguments: str) -> str:
    """What schemathesis has to say, "" if nothing. It generates until the time is over."""
    argv = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color", "run"]
    argv += [f"{platform.url}/api/schema", "--url", platform.url, "-H", f"Authorization: Bearer {key}"]
    argv += ["--checks", "all", "--max-time", str(seconds), "--warnings", "off", *arguments]
    done = subprocess.run(
        argv, env=environment(), capture_output=True, text=True, timeout=seconds + 240, cwd=folder, check=False
    )
    return "" if done.returncode == 0 else done.stdout[-20_000:] + done.stderr[-2000:]


def is_alive(platform: Platform, key: str) -> bool:
    bearer = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{platform.url}/api/v1/adapters", headers=bearer, timeout=60).status_code == 200


def test_with_a_key_of_all_scopes_nothing_is_found(platform: Platform, tmp_path: Path) -> None:
    _, key = platform.tenant("fuzzed")
    beyond = ("--exclude-path-regex", f"{ITS_OWN_END}|/api/v1/tenants")
    assert findings(platform, key, 40, tmp_path, *beyond) == ""
    assert is_alive(platform, key), "a call has ended the key; what came after it showed nothing"


def test_nor_where_keys_end(platform: Platform, tmp_path: Path) -> None:
    platform.tenant("fuzzed")
    key = platform.key("fuzzed")
    assert findings(platform, key, 5, tmp_path, "--include-path-regex", ITS_OWN_END) == ""


def test_nor_with_an_operators(platform: Platform, tmp_path: Path) -> None:
    """What changes tenants is left out: other tests' are in the same database."""
    only = ("--include-path-regex", "/api/v1/tenants", "--exclude-method", "PATCH", "--exclude-method", "PUT")
    assert findings(platform, platform.key(), 10, tmp_path, *only, "--exclude-method", "DELETE") == ""
