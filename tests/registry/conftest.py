"""A registered base model, an adapter that PEFT wrote for it, and a home of the test's own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.files import File
from rest_framework.test import APIClient

from adapters.base import BaseSpec, describe
from audit.services import SYSTEM
from config.env import Env
from registry.models import BaseModel, Version
from registry.services import ensure_adapter, upload_version, validate_version
from tenants.models import Tenant
from tests.registry.callers import Caller, Clients, Commits


@pytest.fixture(autouse=True)
def home(settings: Any, tmp_path: Path) -> Path:
    """LORAYARD_HOME, with the quarantine and the store in it."""
    env: Env = settings.LORAYARD
    home = tmp_path / "home"
    settings.LORAYARD = env.model_copy(update={"home": home, "store_url": f"file://{home}/store"})
    return home


@pytest.fixture(scope="session")
def spec(tiny_base_model: Path) -> BaseSpec:
    return describe(str(tiny_base_model))


@pytest.fixture
def base(db: None, spec: BaseSpec, tiny_base_model: Path) -> BaseModel:
    return BaseModel.objects.create(name="tiny", source=str(tiny_base_model), spec=spec.to_json(), is_default=True)


@pytest.fixture(scope="session")
def peft_folders(tiny_base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters, as `save_pretrained` leaves them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = [tmp_path_factory.mktemp("peft") / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(tiny_base_model)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(str(folder))
    return folders


@pytest.fixture
def folder(peft_folders: list[Path], tmp_path: Path) -> Path:
    """A copy of an adapter, to be spoilt."""
    return Path(shutil.copytree(peft_folders[0], tmp_path / "adapter"))


@pytest.fixture
def push(
    base: BaseModel, peft_folders: list[Path], django_capture_on_commit_callbacks: Commits
) -> Callable[..., Version]:
    """Uploads a folder and, unless told not to, validates it as a worker would: `push(acme, "support", 1)`."""

    def run(tenant: Tenant, name: str, which: int | Path = 0, *, validate: bool = True) -> Version:
        path = peft_folders[which] if isinstance(which, int) else which
        files = [File((path / file).open("rb"), name=file) for file in sorted(p.name for p in path.iterdir())]
        with django_capture_on_commit_callbacks(execute=True):
            version = upload_version(ensure_adapter(tenant, name, actor=SYSTEM), files, actor=SYSTEM)
            if validate:
                validate_version(version.pk)
        version.refresh_from_db()
        return version

    return run


@pytest.fixture
def post(django_capture_on_commit_callbacks: Commits) -> Callable[..., Any]:
    """Uploads files over the API: `post(client, "support", *paths)`."""

    def run(client: APIClient, name: str, *paths: Path, query: str = "") -> Any:
        fields = {f"part{number}": path.open("rb") for number, path in enumerate(paths)}
        try:
            with django_capture_on_commit_callbacks(execute=True):
                return client.post(f"/api/v1/adapters/{name}/versions{query}", fields, format="multipart")
        finally:
            for file in fields.values():
                file.close()

    return run


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def left_behind(home: Path) -> Callable[[], set[str]]:
    """What lies in quarantine or store."""
    return lambda: (
        {name for name in _files(home) if name.startswith(("quarantine", "store"))} if home.exists() else set()
    )


@pytest.fixture
def caller(acme: Tenant, client_of: Clients, django_capture_on_commit_callbacks: Commits) -> Caller:
    return Caller(client_of(acme), django_capture_on_commit_callbacks)


@pytest.fixture
def stranger(globex: Tenant, client_of: Clients, django_capture_on_commit_callbacks: Commits) -> Caller:
    return Caller(client_of(globex), django_capture_on_commit_callbacks)
