"""What every test may ask for: real PostgreSQL, Redis, engine and platform, started when first asked for and once.

The addresses are chosen here, when pytest reads this file and before Django is configured; nothing is started yet then.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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

import pgtrigger  # noqa: E402
from django.test import TransactionTestCase  # noqa: E402
from rest_framework.test import APIClient  # noqa: E402

from apikeys.models import Scope  # noqa: E402
from apikeys.services import issue  # noqa: E402
from audit.services import SYSTEM  # noqa: E402
from config import env, processes, services  # noqa: E402
from tenants.models import Tenant  # noqa: E402
from tenants.services import create_tenant  # noqa: E402

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Asks again and again until the condition holds. Fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def _services() -> Iterator[None]:
    """PostgreSQL and Redis, with nothing in them."""
    run = env.load().run
    ours: tuple[services.Service, ...] = (
        services.Postgres(HOME / "postgres", run / "postgres", FAST),
        services.Redis(HOME / "redis", run / "redis.sock"),
    )
    running = []
    try:
        for service in ours:
            service.prepare()
            with (HOME / f"{service.name}.log").open("wb") as log:
                running.append((service.command(), service.command().popen(stdout=log, stderr=log)))
        for service in ours:
            wait_for(service.ready, 30, f"{service.name} becoming ready")
        ours[0].ensure_database("lorayard")
        yield
    finally:
        for command, process in reversed(running):
            processes.end(process, command.stop, 10)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(_services: None) -> None:
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
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0], pad_token=specials[0])
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
def _emptied_past_the_audit_trigger() -> None:
    """Audit events refuse TRUNCATE, which is how Django empties the database after a transactional test."""
    empty = TransactionTestCase._fixture_teardown

    def past_triggers(case: TransactionTestCase) -> None:
        with pgtrigger.ignore("audit.Event:no_truncate"):
            empty(case)

    TransactionTestCase._fixture_teardown = past_triggers  # type: ignore[method-assign]


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
