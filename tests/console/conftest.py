"""Two tenants with rows of every kind, the operator and a member of each, all over the real services."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.core.files import File
from django.core.files.base import ContentFile
from django.test import Client

from adapters.base import BaseSpec, describe
from apikeys import services as apikeys
from apikeys.models import ApiKey, Scope
from audit.services import SYSTEM
from config.env import Env
from registry.models import Adapter, Alias, BaseModel, Version
from registry.services import ensure_adapter, upload_version, validate_version
from tenants.models import Role, Tenant
from tenants.services import add_member

Commits = Callable[..., AbstractContextManager[Any]]
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path) -> Path:
    env: Env = settings.LORAYARD
    home = tmp_path / "home"
    away = f"unix:{tmp_path}/no-engine.sock"
    settings.LORAYARD = env.model_copy(update={"home": home, "store_url": f"file://{home}/store", "engine_url": away})
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # quick
    return home


@pytest.fixture(scope="session")
def spec(tiny_base_model: Path) -> BaseSpec:
    return describe(str(tiny_base_model))


@pytest.fixture(scope="session")
def peft_folder(
    tiny_base_model: Path, make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_adapter(tmp_path_factory.mktemp("peft") / "support", tiny_base_model, rank=4)


@pytest.fixture
def base(db: None, spec: BaseSpec, tiny_base_model: Path) -> BaseModel:
    return BaseModel.objects.create(name="tiny", source=str(tiny_base_model), spec=spec.to_json(), is_default=True)


@dataclass(frozen=True)
class Yard:
    """One tenant's rows. `waiting` is a version that no worker has looked at."""

    tenant: Tenant
    adapter: Adapter
    ready: Version
    rejected: Version
    waiting: Version
    alias: Alias
    key: ApiKey
    revoked: ApiKey


@pytest.fixture
def yard_of(base: BaseModel, peft_folder: Path, django_capture_on_commit_callbacks: Commits) -> Callable[..., Yard]:
    def upload(adapter: Adapter, *files: File[Any]) -> Version:
        with django_capture_on_commit_callbacks():
            return upload_version(adapter, files, actor=SYSTEM)

    def settled(version: Version) -> Version:
        with django_capture_on_commit_callbacks(execute=True):
            validate_version(version.pk)
        return Version.objects.get(pk=version.pk)

    def make(tenant: Tenant) -> Yard:
        adapter = ensure_adapter(tenant, f"{tenant.slug}-support", actor=SYSTEM)
        paths = [peft_folder / name for name in ("adapter_config.json", "adapter_model.safetensors")]
        ready = settled(upload(adapter, *(File(path.open("rb"), name=path.name) for path in paths)))
        rejected = settled(upload(adapter, ContentFile(b"\x80\x04.", name="<b>adapter_model.bin")))
        waiting = upload(adapter, ContentFile(b"{}", name="adapter_config.json"))
        key, _ = apikeys.issue(tenant, name=f"{tenant.slug} app", scopes=[Scope.INFERENCE], actor=SYSTEM)
        old, _ = apikeys.issue(tenant, name=f"{tenant.slug} old", scopes=[Scope.ADAPTERS_READ], actor=SYSTEM)
        alias = adapter.aliases.get()
        return Yard(tenant, adapter, ready, rejected, waiting, alias, key, apikeys.revoke(old, actor=SYSTEM))

    return make


@pytest.fixture
def ours(acme: Tenant, yard_of: Callable[..., Yard]) -> Yard:
    return yard_of(acme)


@pytest.fixture
def strangers(globex: Tenant, yard_of: Callable[..., Yard]) -> Yard:
    return yard_of(globex)


@pytest.fixture
def operator(db: None) -> User:
    return get_user_model().objects.create_superuser("olivia", password=PASSWORD)


@pytest.fixture
def browser(db: None) -> Callable[[User], Client]:
    def make(user: User) -> Client:
        client = Client(REMOTE_ADDR="192.0.2.7")
        client.force_login(user)
        return client

    return make


@pytest.fixture
def desk(operator: User, browser: Callable[[User], Client]) -> Client:
    """The operator's browser."""
    return browser(operator)


@pytest.fixture
def member_of(browser: Callable[[User], Client]) -> Callable[..., Client]:
    """The browser of a new person of the staff: `member_of(acme, Role.EDITOR)`; of no tenant: `member_of()`."""

    def make(tenant: Tenant | None = None, role: Role = Role.VIEWER) -> Client:
        count = User.objects.count()
        user = User.objects.create_user(f"person{count}", password=PASSWORD, is_staff=True)
        if tenant is not None:
            add_member(tenant, user, role, actor=SYSTEM)
        return browser(user)

    return make
