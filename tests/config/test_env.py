"""Settings from outside: what is unset is made, what makes no sense stops the start with its name."""

import json
import os
import stat
from pathlib import Path

import pytest

from config import env
from tests.processes import OURS, manage

SECRET = "s" * 40


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment that says nothing but where home is."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LORAYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_everything_unset_is_embedded_and_under_home(home: Path) -> None:
    told = env.load()
    assert (told.own_engine, told.own_database, told.own_redis) == (True, True, True)
    assert told.engine_url == f"unix:{told.run}/engine.sock"
    assert told.database_url == f"postgresql://lorayard@/lorayard?host={told.run}/postgres"
    assert told.store_url == f"file://{home}/store"
    assert told.url == "http://127.0.0.1:8000"


def test_what_is_told_is_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:p@db.example/lorayard")
    monkeypatch.setenv("REDIS_URL", "redis://cache.example:6379/0")
    monkeypatch.setenv("LORAYARD_ENGINE_URL", "engine.example:50051")
    told = env.load()
    assert (told.own_engine, told.own_database, told.own_redis) == (False, False, False)
    assert told.engine_url == "engine.example:50051"


def test_secrets_are_made_once_and_only_their_owner_can_read_them(home: Path) -> None:
    first, second = env.load(), env.load()
    secrets = [first.secret_key, first.engine_secret, first.pepper]
    assert [second.secret_key, second.engine_secret, second.pepper] == secrets
    assert len(set(secrets)) == 3
    assert all(len(secret) >= 48 for secret in secrets)
    assert stat.S_IMODE((home / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_secret_that_is_told_wins_over_the_one_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = env.load()
    monkeypatch.setenv("LORAYARD_PEPPER", SECRET)
    told = env.load()
    assert told.pepper == SECRET
    assert told.secret_key == kept.secret_key


def test_with_all_secrets_told_nothing_is_written(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name in ("SECRET_KEY", "LORAYARD_ENGINE_SECRET", "LORAYARD_PEPPER"):
        monkeypatch.setenv(name, SECRET)
    env.load()
    assert not home.exists()


def test_damaged_secrets_are_not_replaced(home: Path) -> None:
    env.load()
    (home / "secrets.json").write_text("{")
    with pytest.raises(env.SettingInvalid, match="damaged"):
        env.load()
    assert (home / "secrets.json").read_text() == "{"


def test_a_home_too_deep_for_sockets_gets_a_short_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAYARD_HOME", str(tmp_path / ("deep" * 30)))
    run = env.load().run
    assert len(os.fsencode(run / env.LONGEST_SOCKET)) <= env.SOCKET_PATH_LIMIT
    monkeypatch.setenv("LORAYARD_HOME", str(tmp_path / ("other" * 30)))
    assert env.load().run != run


def test_a_folder_is_understood_from_where_the_person_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAYARD_BASE_MODEL", "mine")
    assert env.load().base_model == str(tmp_path / "mine")
    monkeypatch.setenv("LORAYARD_BASE_MODEL", "someone/model")
    assert env.load().base_model == "someone/model"


@pytest.mark.parametrize(
    ("given", "broker"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("unix:///run/r.sock", "redis+socket:///run/r.sock"),
        ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3"),
    ],
)
def test_celery_is_told_of_redis_in_its_own_spelling(monkeypatch: pytest.MonkeyPatch, given: str, broker: str) -> None:
    monkeypatch.setenv("REDIS_URL", given)
    assert env.load().celery_broker == broker


NONSENSE = {
    "LORAYARD_PORT": ["0", "65536", "http", "-1", "8000.5"],
    "LORAYARD_DEVICE": ["gpu"],
    "LORAYARD_DTYPE": ["fp8"],
    "LORAYARD_ENGINE_URL": ["engine", "unix:relative", "host:0", "host:99999", "http://host:1"],
    "LORAYARD_STORE_URL": ["store", "http://x/y", "file:"],
    "LORAYARD_PUBLIC_URL": ["example.com", "ftp://example.com"],
    "LORAYARD_DATABASE_POOL": ["-1", "many"],
    "LORAYARD_REJECTED_DAYS": ["-1", "never"],
    "LORAYARD_PEPPER": ["short"],
    "LORAYARD_AUDIT_STORE_URL": ["store", "http://x/y"],
    "LORAYARD_AUDIT_KEY": ["short", "c2hvcnQ="],
    "LORAYARD_AUDIT_FORMER_KEYS": ["x"],
    "LORAYARD_AUDIT_RETENTION_DAYS": ["-1", "forever"],
    "LORAYARD_WEBHOOK_ALLOW": ["everything", "10.0.0.1/8", "10.0.0.0/33"],
    "LORAYARD_ALLOWED_HOSTS": ["http://a.example", "a.example:80", "a b"],
    "LORAYARD_TRUSTED_PROXIES": ["proxy", "10.0.0.1/8"],
    "LORAYARD_CORS_ORIGINS": ["app.example", "https://app.example/", "null", "https://app.example:port"],
    "LORAYARD_INSPECT_FROM": ["nowhere"],
    "LORAYARD_INSPECT_TOKEN": ["short", "with spaces in the middle"],
    "LORAYARD_OPEN_PER_KEY": ["0", "many"],
    "LORAYARD_CONNECTIONS": ["0"],
    "LORAYARD_ENGINE_SECRET": ["short"],
    "SECRET_KEY": ["short"],
    "DATABASE_URL": ["mysql://h/d", "postgresql://h", "h", "postgresql://h:port/d"],
    "REDIS_URL": ["http://h", "redis"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values])
def test_nonsense_is_refused_in_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(env.SettingInvalid) as refused:
        env.load()
    text = str(refused.value)
    assert text.startswith(f"{name}: ")
    assert "\n" not in text


def test_a_home_that_cannot_be_written_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LORAYARD_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(env.SettingInvalid, match=r"^LORAYARD_HOME: cannot write"):
        env.load()


def test_a_secret_never_appears_in_the_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql://me:hunter2@h/d")
    with pytest.raises(env.SettingInvalid) as refused:
        env.load()
    assert "hunter2" not in str(refused.value)


def test_nothing_secret_is_seen_when_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@h/d")
    told = env.load()
    assert not any(secret in repr(told) for secret in (told.pepper, told.secret_key, told.engine_secret, "hunter2"))


def test_the_command_line_says_it_in_one_line_too(home: Path) -> None:
    result = manage({"LORAYARD_HOME": str(home), "LORAYARD_PORT": "many"}, "check")
    assert result.returncode == 1
    assert result.stderr.startswith("LORAYARD_PORT: ")
    assert result.stderr.count("\n") == 1


def test_every_variable_of_the_file_of_secrets_is_one_of_ours(home: Path) -> None:
    env.load()
    assert set(json.loads((home / "secrets.json").read_text())) == set(env.GENERATED)
