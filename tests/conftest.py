"""What every test may ask for: real PostgreSQL, Redis, engine and platform, started when first asked for and once.

The addresses are chosen here, when pytest reads this file and before Django is configured; nothing is started yet then.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

HOME = Path(tempfile.mkdtemp(prefix="lytest-"))
for name in [name for name in os.environ if name.startswith("LORAYARD_")]:
    del os.environ[name]
for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY"):
    os.environ.pop(name, None)
os.environ |= {
    "LORAYARD_HOME": str(HOME),
    "DJANGO_SETTINGS_MODULE": "config.settings",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
}

import django  # noqa: E402

django.setup()  # here rather than in pytest-django's own time, so that tests can import models at the top

from django.db import connection  # noqa: E402
from django.test import Client, TransactionTestCase  # noqa: E402
from rest_framework.test import APIClient  # noqa: E402

from apikeys.models import Scope  # noqa: E402
from apikeys.services import issue  # noqa: E402
from audit.services import SYSTEM  # noqa: E402
from config import env, processes  # noqa: E402
from config.services import Postgres, Redis  # noqa: E402
from inference.client import EngineClient  # noqa: E402
from tenants.models import Tenant  # noqa: E402
from tenants.services import create_tenant  # noqa: E402
from tests.database import web_role  # noqa: E402
from tests.processes import Platform, Up, free_port, wait_for  # noqa: E402

RUN = env.load().run

# No example fails for the time that it takes: a busy machine needs more.
UNHURRIED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
hypothesis_settings.register_profile("unhurried", deadline=None, suppress_health_check=UNHURRIED)
hypothesis_settings.load_profile("unhurried")

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


@dataclass(frozen=True)
class Services:
    """What runs while tests do."""

    postgres: Postgres

    def database(self, name: str) -> str:
        """The URL of a database of this name, made if need be."""
        self.postgres.ensure_database(name)
        return f"postgresql://lorayard@/{name}?host={self.postgres.sockets}"

    def redis(self, number: int) -> str:
        """The URL of Redis' database of this number; 0 is the one that tests in this process use."""
        return f"unix://{RUN / 'redis.sock'}?db={number}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """pytest-django would read the settings of a process that inherits their name before this file gives it a home."""
    os.environ.pop("DJANGO_SETTINGS_MODULE")


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, None, None]:
    """In one of several processes (pytest-xdist): one of them runs all that uses the platform or the engine, which then
    start once. That is the longest part, so it comes first, and then what starts a platform of its own; otherwise each
    module runs in whichever process is free.
    """
    apart = hasattr(config, "workerinput")
    for item in items if apart else ():
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    yield
    if apart:
        items.sort(key=lambda item: [_group(item) != first for first in ("platform", "tests/config/test_up.py")])


def _group(item: pytest.Item) -> str:
    shared = {"platform", "engine"} & set(getattr(item, "fixturenames", ()))
    return "platform" if shared else item.nodeid.partition("::")[0]


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """PostgreSQL and Redis, with nothing in them."""
    postgres = Postgres(HOME / "postgres", RUN / "postgres", FAST)
    ours = (postgres, Redis(HOME / "redis", RUN / "redis.sock"))
    running = []
    try:
        for service in ours:
            service.prepare()
            with (HOME / f"{service.name}.log").open("wb") as log:
                running.append((service.command(), service.command().popen(stdout=log, stderr=log)))
        for service in ours:
            wait_for(service.ready, 30, f"{service.name} becoming ready")
        postgres.ensure_database("lorayard")
        yield Services(postgres)
    finally:
        for command, process in reversed(running):
            processes.end(process, command.stop, 10)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(services: Services) -> None:
    """pytest-django makes its database in ours."""


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, a tokenizer of bytes and a chat template; random, float32, seeded."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    specials = ["<|end|>", "<|start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*specials, *alphabet])}, []))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer_class: Any = PreTrainedTokenizerFast
    fast = tokenizer_class(tokenizer_object=tokenizer, eos_token=specials[0], pad_token=specials[0])
    fast.chat_template = (
        "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _emptied_past_the_audit_triggers() -> None:
    """The audit log refuses TRUNCATE, which is how Django empties the database after a transactional test."""
    django_s: Any = TransactionTestCase
    empty = django_s._fixture_teardown

    def past_triggers(case: TransactionTestCase) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
        try:
            empty(case)
        finally:
            with connection.cursor() as cursor:
                cursor.execute("SET session_replication_role = origin")

    django_s._fixture_teardown = past_triggers


@pytest.fixture(autouse=True)
def _requests_run_as_the_web_role(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test prepares and looks as the tables' owner; what it asks for over HTTP is done by the role of the web."""
    django_s: Any = Client
    ask = django_s.request

    def as_web_role(client: Client, **request: Any) -> Any:
        with web_role():
            return ask(client, **request)

    monkeypatch.setattr(Client, "request", as_web_role)


@pytest.fixture
def acme(db: None) -> Tenant:
    return create_tenant("acme", "Acme", actor=SYSTEM)


@pytest.fixture
def globex(db: None) -> Tenant:
    """The stranger."""
    return create_tenant("globex", "Globex", actor=SYSTEM)


@pytest.fixture
def client_of(db: None) -> Callable[..., APIClient]:
    """A client with a new key: `client_of(acme, "adapters:read")`. Without scopes: all that a tenant's key can have.

    With None for a tenant: an operator's.
    """

    def make(tenant: Tenant | None, *scopes: str, adapters: tuple[str, ...] = ()) -> APIClient:
        every = [scope for scope in Scope.values if (scope == Scope.PLATFORM) == (tenant is None)]
        _, key = issue(tenant, name="test", scopes=scopes or every, adapters=adapters, actor=SYSTEM)
        return APIClient(headers={"Authorization": f"Bearer {key}"})

    return make


@pytest.fixture(scope="session")
def base_model_folder(tiny_base_model: Path) -> Path:
    """The model that `engine` and `platform` serve. Override it to serve another."""
    return tiny_base_model


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """make_adapter(folder, base, rank=8, targets=("q_proj", "v_proj"), seed=0, scale=1.0, **config): what PEFT writes.

    Both matrices are drawn at random (PEFT's own start, with B zero, would change nothing), B times `scale`.
    """

    def make(
        folder: Path,
        base: Path,
        rank: int = 8,
        targets: Iterable[str] | str = ("q_proj", "v_proj"),
        seed: int = 0,
        scale: float = 1.0,
        **config: Any,
    ) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        wanted = targets if isinstance(targets, str) else list(targets)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        lora = LoraConfig(r=rank, target_modules=wanted, task_type="CAUSAL_LM", **{"lora_alpha": 2 * rank, **config})
        adapted = get_peft_model(model, lora)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=scale * 0.1)
        adapted.save_pretrained(str(folder))
        return folder

    return make


@pytest.fixture(scope="session")
def engine(base_model_folder: Path) -> Iterator[str]:
    """The address of a real engine, which the settings of this process name too; its store is theirs."""
    yield from _running_engine(env.load(), base_model_folder)


def _running_engine(told: env.Env, model: Path) -> Iterator[str]:
    from config.stack import Stack

    command = Stack(told.model_copy(update={"base_model": str(model), "device": "cpu"})).engine
    for folder in (told.home / "store", told.home / "cache", told.run):
        folder.mkdir(exist_ok=True)
    with (told.home / "engine.log").open("wb") as log:
        process = command.popen(stdout=log, stderr=log)
    try:
        wait_for(lambda: process.poll() is not None or asyncio.run(_healthy(told)), 60, "the engine becoming healthy")
        assert process.poll() is None, (told.home / "engine.log").read_text()[-2000:]
        yield told.engine_url
    finally:
        processes.end(process, command.stop, 10)


async def _healthy(told: env.Env) -> bool:
    client = EngineClient(told.engine_url, told.engine_secret)
    try:
        return await client.healthy()
    finally:
        await client.close()


@pytest.fixture(scope="session")
def platform(services: Services, engine: str, base_model_folder: Path) -> Iterator[Platform]:
    """`manage.py up` on a database of its own and on the session's engine."""
    port = free_port()
    told = {
        "LORAYARD_HOME": str(HOME / "platform"),
        "LORAYARD_PORT": str(port),
        "LORAYARD_BASE_MODEL": str(base_model_folder),
        "LORAYARD_ENGINE_URL": engine,
        "LORAYARD_ENGINE_SECRET": env.load().engine_secret,
        "LORAYARD_STORE_URL": env.load().store_url,
        "LORAYARD_AUDIT_STORE_URL": f"file://{HOME}/platform/audit",
        "LORAYARD_ALLOWED_HOSTS": ".internal.example",
        "LORAYARD_CORS_ORIGINS": "https://app.example,http://localhost:3000",
        "DATABASE_URL": services.database("platform"),
        "REDIS_URL": services.redis(1),
    }
    with Up(told, HOME / "platform.log") as up:
        up.ready()
        yield Platform(f"http://127.0.0.1:{port}", told)
