"""Reads the environment into one frozen object; knows nothing of Django.

Every variable is listed in `Env`. One that makes no sense raises `SettingInvalid`, whose text is one line that starts
with the variable's name. Secrets that are unset are made once and kept in `<LORAYARD_HOME>/secrets.json`, mode 0600.
"""

import base64
import contextlib
import hashlib
import ipaddress
import json
import os
import re
import secrets
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import AliasChoices, Field, PlainValidator, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "demo" / "base"
SOCKET_PATH_LIMIT = 100  # of the 107 bytes that Linux allows, with room for the longest name below
LONGEST_SOCKET = "postgres/.s.PGSQL.5432"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HOST = re.compile(r"\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\]")
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(:\d+)?|https?://\[[0-9A-Fa-f:.]+\](:\d+)?")

GENERATED = ("secret_key", "engine_secret", "pepper")


class SettingInvalid(Exception):
    """A setting that makes no sense. Its text is one line: the variable's name, then what is wrong."""


def _folder(value: object) -> Path:
    return Path(os.path.abspath(os.path.expanduser(str(value))))


Folder = Annotated[Path, PlainValidator(_folder)]


class Env(BaseSettings):
    """What the platform is told from outside, with "unset" resolved."""

    model_config = SettingsConfigDict(
        env_prefix="LORAYARD_", frozen=True, extra="ignore", env_ignore_empty=True, validate_default=False
    )

    home: Folder = ROOT / "var"
    base_model: str = str(DEMO_MODEL)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    engine_url: str = ""
    port: int = Field(default=8000, ge=1, le=65535)
    public_url: str = ""
    gateway_url: str = ""  # where workers reach a web process of ours
    store_url: str = ""
    debug: bool = False
    rollback_hours: float = Field(default=24, ge=0, le=24 * 365)  # how long a version that an alias left is kept for it
    rejected_days: float = Field(default=90, ge=0, le=36500)  # how long rejected versions' reports stay; 0: for ever
    database_pool: int = Field(default=0, ge=0, le=1000)  # connections that a process shares; 0: one per thread
    # What the web process may do in the database: a role that `migrate` makes, bound to the tenants in scope.
    web_role: str = Field(default="lorayard_web", pattern=r"^[a-z_][a-z0-9_]{0,62}$")  # "none": as the tables' owner
    database_role: str = Field(default="", pattern=r"^([a-z_][a-z0-9_]{0,62})?$")  # assumed by this process; "": none
    database_url: str = Field(default="", repr=False, validation_alias=AliasChoices("DATABASE_URL"))
    redis_url: str = Field(default="", repr=False, validation_alias=AliasChoices("REDIS_URL"))
    secret_key: str = Field(default="", repr=False, min_length=32, validation_alias=AliasChoices("SECRET_KEY"))
    engine_secret: str = Field(default="", repr=False, min_length=32)
    pepper: str = Field(default="", repr=False, min_length=32)

    allowed_hosts: str = ""  # names beside loopback's and public_url's that requests may come for; ".a.org": all below
    trusted_proxies: str = ""  # networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed
    # Whether the names of control tokens ("<|im_end|>") in what people say are these tokens, as they are for vLLM.
    control_tokens_in_content: bool = False

    cors_origins: str = ""  # web pages that may call /v1 from a browser, as "https://app.example"; "*": all
    # Who may read /metrics and the API's schema, beside those who bear the token.
    inspect_from: Literal["loopback", "anywhere"] = "loopback"
    inspect_token: str = Field(default="", repr=False, pattern=r"^([!-~]{16,})?$")

    # What a web process holds open at once; see config/connections.py and gateway/places.py.
    open_per_key: int = Field(default=1024, ge=1)  # requests under way and WebSockets
    open_per_tenant: int = Field(default=2048, ge=1)
    connections_per_address: int = Field(default=2048, ge=1)  # trusted proxies are not counted
    connections: int = Field(default=8192, ge=1)  # and never more than the limit of open files has room for

    # Private networks that webhooks may reach, as "10.1.0.0/16,127.0.0.1/32"; public addresses need no entry.
    webhook_allow: str = ""

    audit_store_url: str = ""  # where sealed segments and the newest checkpoint lie; unset: beside the adapters
    # Signs the audit log: 32 bytes in base64; unset: made once into home. Former ones are public keys, to verify with.
    audit_key: str = Field(default="", repr=False)
    audit_former_keys: str = ""
    audit_retention_days: int = Field(default=0, ge=0, le=36500)  # events older than this are sealed; 0: none is

    usage_retention_days: int = Field(default=90, ge=1, le=36500)  # older calls are forgotten, their days' sums kept

    own_engine: bool = False  # these three follow from the URLs; load() sets them whatever the environment says
    own_database: bool = False
    own_redis: bool = False

    @field_validator("engine_url")
    @classmethod
    def _engine_url(cls, value: str) -> str:
        if value and not (value.startswith("unix:/") or _is_address(value)):
            raise ValueError("must be unix:/path or host:port")
        return value

    @field_validator("public_url", "gateway_url")
    @classmethod
    def _public_url(cls, value: str) -> str:
        return _url(value, {"http", "https"}, "http://host[:port]").rstrip("/")

    @field_validator("store_url", "audit_store_url")
    @classmethod
    def _store_url(cls, value: str) -> str:
        return _url(value, {"file", "s3"}, "file:///folder or s3://bucket/prefix")

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: str) -> str:
        value = _url(value, {"postgres", "postgresql"}, "postgresql://user:password@host/name")
        if value and not urlsplit(value).path.strip("/"):
            raise ValueError("must name a database, as in postgresql://user:password@host/name")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: str) -> str:
        return _url(value, {"redis", "rediss", "unix"}, "redis://host:6379/0")

    @field_validator("webhook_allow", "trusted_proxies")
    @classmethod
    def _lists_of_networks(cls, value: str) -> str:
        _networks(value)
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _allowed_hosts(cls, value: str) -> str:
        if any(not HOST.fullmatch(host) for host in _list(value)):
            raise ValueError("must be names of hosts, without scheme and port, as lorayard.example,.internal.example")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _cors_origins(cls, value: str) -> str:
        if any(not ORIGIN.fullmatch(origin) for origin in _list(value)):
            raise ValueError("must be origins, as https://app.example,http://localhost:3000, or *")
        return value

    @property
    def hosts(self) -> list[str]:
        """Further names that requests may come for."""
        return _list(self.allowed_hosts)

    @cached_property
    def proxies(self) -> tuple[Network, ...]:
        """Networks of proxies that are believed."""
        return _networks(self.trusted_proxies)

    @cached_property
    def origins(self) -> frozenset[str]:
        """Web pages that may call the data plane."""
        return frozenset(origin.lower() for origin in _list(self.cors_origins))

    @cached_property
    def webhook_networks(self) -> tuple[Network, ...]:
        """Networks beside the public ones that a tenant's webhook may lead to."""
        return _networks(self.webhook_allow)

    @field_validator("audit_key", "audit_former_keys")
    @classmethod
    def _audit_keys(cls, value: str) -> str:
        if any(len(base64.b64decode(key, validate=True)) != 32 for key in _list(value)):
            raise ValueError("must be 32 bytes in base64")
        return value

    @property
    def audit_former(self) -> list[str]:
        """Public keys of former times, whose signatures on the audit log still count."""
        return _list(self.audit_former_keys)

    @cached_property
    def run(self) -> Path:
        """Where sockets live: under home, or in a short folder of this user's own when home's path is too long."""
        inside = self.home / "run"
        if len(os.fsencode(inside / LONGEST_SOCKET)) <= SOCKET_PATH_LIMIT:
            return inside
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"lorayard-{os.getuid()}-{name}"

    @property
    def url(self) -> str:
        """Where the console answers, without a slash at the end."""
        return self.public_url or f"http://127.0.0.1:{self.port}"

    @property
    def celery_broker(self) -> str:
        """Celery spells Redis on a Unix socket in its own way."""
        if not self.redis_url.startswith("unix://"):
            return self.redis_url
        return self.redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=", 1)


def load() -> Env:
    """The environment, checked and completed. Raises SettingInvalid. Makes home's secrets where they are unset."""
    given = _read()
    run, folder = given.run, Path(given.base_model).expanduser()
    store = given.store_url or f"file://{given.home / 'store'}"
    return given.model_copy(
        update={
            "base_model": os.path.abspath(folder) if folder.is_dir() else given.base_model,
            "own_engine": not given.engine_url,
            "own_database": not given.database_url,
            "own_redis": not given.redis_url,
            "gateway_url": given.gateway_url or f"http://127.0.0.1:{given.port}",
            "engine_url": given.engine_url or f"unix:{run / 'engine.sock'}",
            "database_url": given.database_url
            or f"postgresql://lorayard@/lorayard?host={quote(str(run / 'postgres'))}",
            "redis_url": given.redis_url or f"unix://{run / 'redis.sock'}",
            "store_url": store,
            "audit_store_url": given.audit_store_url or f"{store.rstrip('/')}/audit",
            **_secrets(given),
        }
    )


def _read() -> Env:
    try:
        return Env()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        variable = f"LORAYARD_{name.upper()}" if name in Env.model_fields else name.upper()
        raise SettingInvalid(f"{variable}: {first['msg'].removeprefix('Value error, ')}") from None


def _secrets(given: Env) -> dict[str, str]:
    """The three secrets: as given, else as kept in home, else made now."""
    wanted = {name: getattr(given, name) for name in GENERATED}
    if all(wanted.values()):
        return wanted
    path = given.home / "secrets.json"
    try:
        kept = json.loads(path.read_text()) if path.exists() else _make_secrets(path)
        return {name: value or str(kept[name]) for name, value in wanted.items()}
    except OSError as error:
        raise SettingInvalid(f"LORAYARD_HOME: cannot write {error.filename or given.home}: {error.strerror}") from None
    except (ValueError, KeyError):
        raise SettingInvalid(f"LORAYARD_HOME: {path} is damaged; restore it, since keys depend on it") from None


def _make_secrets(path: Path) -> dict[str, str]:
    """Written beside, then linked: of several processes that start at once, one wins and all read the winner's."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump({name: secrets.token_urlsafe(48) for name in GENERATED}, file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        os.unlink(draft)
    return dict(json.loads(path.read_text()))


def _url(value: str, schemes: set[str], shape: str) -> str:
    """The value, if it is empty or a URL of one of these schemes."""
    parts = urlsplit(value)
    try:
        parts.port  # noqa: B018 - it is parsed when asked for
    except ValueError:
        raise ValueError("has a port that is no number up to 65535") from None
    if value and (parts.scheme not in schemes or not (parts.netloc or parts.path)):
        raise ValueError(f"must look like {shape}")
    return value


def _list(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _networks(value: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(part) for part in _list(value))


def _is_address(value: str) -> bool:
    host, _, port = value.rpartition(":")
    return bool(host) and "/" not in host and port.isdigit() and 0 < int(port) <= 65535
