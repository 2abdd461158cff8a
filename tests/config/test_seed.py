"""What a fresh platform is given, and that it is given once."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import authenticate, get_user_model
from django.http import HttpRequest

from apikeys import services as apikeys
from apikeys.models import ApiKey, Scope
from config import demo, seed
from config.env import DEMO_MODEL, Env
from tenants.models import Tenant

pytestmark = pytest.mark.django_db


@pytest.fixture
def env(tmp_path: Path, tiny_base_model: Path) -> Env:
    """A home of its own, and a base model that is not the demo's."""
    told: Env = settings.LORAYARD.model_copy(update={"home": tmp_path, "base_model": str(tiny_base_model)})
    return told


def kept(env: Env) -> dict[str, Any]:
    return dict(json.loads(seed.credentials_path(env).read_text()))


def test_credentials_work_and_only_their_owner_can_read_them(env: Env) -> None:
    seed.run(env, print)
    credentials = kept(env)
    assert stat.S_IMODE(seed.credentials_path(env).stat().st_mode) == 0o600
    console = dict(credentials["console"])
    assert console.pop("url") == f"{env.url}/"
    operator: Any = authenticate(HttpRequest(), **console)
    assert operator is not None
    assert operator.is_superuser
    for slug in ("acme", "globex"):
        key = apikeys.verify(credentials["tenants"][slug]["api_key"])
        assert key is not None
        assert key.tenant == Tenant.objects.get(slug=slug)
        assert Scope.PLATFORM not in key.scopes


def test_the_second_time_nothing_changes(env: Env) -> None:
    seed.run(env, print)
    first = kept(env)
    seed.run(env, print)
    assert kept(env) == first
    assert ApiKey.objects.count() == 2
    assert Tenant.objects.count() == 2


def test_a_password_that_a_person_chose_stays(env: Env) -> None:
    seed.run(env, print)
    user = get_user_model().objects.get(username=seed.OPERATOR)
    user.set_password("my own choice")
    user.save()
    seed.run(env, print)
    assert authenticate(HttpRequest(), username=seed.OPERATOR, password="my own choice") is not None


def test_lost_credentials_are_replaced_by_new_ones(env: Env) -> None:
    seed.run(env, print)
    lost = kept(env)
    seed.credentials_path(env).unlink()
    seed.run(env, print)
    new = kept(env)
    assert new["tenants"]["acme"]["api_key"] != lost["tenants"]["acme"]["api_key"]
    assert authenticate(HttpRequest(), username=seed.OPERATOR, password=new["console"]["password"]) is not None


def test_it_knows_when_there_is_nothing_to_do(env: Env, tmp_path: Path) -> None:
    assert not seed.is_done(env)
    seed.run(env, print)
    assert seed.is_done(env)
    assert not seed.is_done(env.model_copy(update={"port": env.port + 1})), "the console's address is another"
    assert not seed.is_done(env.model_copy(update={"base_model": "someone/else"}))
    seed.credentials_path(env).unlink()
    assert not seed.is_done(env)


def test_the_demos_adapters_are_for_the_demos_model_alone(env: Env) -> None:
    assert demo.uploads(env) == ()
    assert demo.first_call(env, "acme", "tiny").model == "tiny"


def test_every_adapter_of_the_demo_is_there_to_upload(env: Env) -> None:
    served = env.model_copy(update={"base_model": str(DEMO_MODEL)})
    uploads = demo.uploads(served)
    assert {upload.tenant for upload in uploads} == {"acme", "globex"}
    assert all((upload.folder / "adapter_model.safetensors").is_file() for upload in uploads)
    assert demo.first_call(served, "acme", "base").model.startswith("acme/")
