from types import SimpleNamespace
from uuid import uuid4

import pytest

from apikeys.credentials import token_of
from apikeys.services import issue, revoke
from audit.services import SYSTEM
from gateway import authentication
from gateway.authentication import Caller, Memory, authenticate
from gateway.database import query
from gateway.errors import Forbidden, Unauthorized
from tenants.models import Tenant

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"api-key": "abc"}, "abc"),
        ({"x-api-key": " abc"}, "abc"),
        ({"authorization": "Bearer abc", "api-key": "other"}, "abc"),
        ({"authorization": "Basic of-a-proxy", "x-api-key": "abc"}, "abc"),
        ({}, None),
        ({"authorization": ""}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"authorization": "Bearer ", "api-key": "other"}, ""),
        ({"authorization": "Basic abc"}, ""),
        ({"api-key": ""}, ""),
    ],
)
def test_a_key_is_taken_from_where_clients_put_it(headers: dict[str, str], token: str | None) -> None:
    assert token_of(headers) == token


@pytest.mark.parametrize("token", ["", "é", "x" * 513])
async def test_what_cannot_be_a_key_is_not_looked_up(token: str) -> None:
    with pytest.raises(Unauthorized):
        await asked(token)


async def asked(token: str) -> Caller:
    return await authenticate({"authorization": f"Bearer {token}"})


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "_known", Memory())


async def test_a_key_is_its_tenants(acme: Tenant, globex: Tenant) -> None:
    callers = [await asked(await new_key(tenant)) for tenant in (acme, acme, globex)]
    assert [caller.tenant.slug for caller in callers] == ["acme", "acme", "globex"]
    assert callers[0].salt == callers[1].salt != callers[2].salt
    assert callers[0].share == callers[1].share == str(acme.pk) != callers[2].share
    assert str(acme.pk) not in callers[0].salt


async def test_a_remembered_key_forgets_its_revocation_for_half_a_second_at_most(
    acme: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(authentication, "time", SimpleNamespace(monotonic=lambda: now[0]))
    key, token = await query(issue, acme, name="k", scopes=["inference"], actor=SYSTEM)
    first = await asked(token)
    await query(revoke, key, actor=SYSTEM)
    now[0] += 0.49
    assert await asked(token) is first
    now[0] += 0.01
    with pytest.raises(Unauthorized):
        await asked(token)


async def test_a_remembered_key_is_known_by_every_character_of_it(acme: Tenant) -> None:
    token = await new_key(acme)
    await asked(token)
    for stranger in (token[:-1], token + "0", token.upper(), token[:-1] + "g"):
        with pytest.raises(Unauthorized):
            await asked(stranger)


async def test_a_key_without_the_scope_is_never_remembered_as_one_with_it(acme: Tenant) -> None:
    token = await new_key(acme, "adapters:read")
    for _ in range(2):
        with pytest.raises(Forbidden):
            await asked(token)


async def test_a_key_for_the_background_infers_behind_its_tenants_other_requests(acme: Tenant) -> None:
    live, background = [await asked(await new_key(acme, scope)) for scope in ("inference", "inference:background")]
    assert live.priority < background.priority
    assert live.share == background.share


async def test_the_memory_has_a_bound(acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "REMEMBERED", 2)
    memory = Memory()
    for _ in range(4):
        await memory.get(await new_key(acme))
    assert len(memory._callers) == 2


async def test_wrong_keys_are_not_remembered(acme: Tenant) -> None:
    memory = Memory()
    for _ in range(8):
        assert await memory.get(f"ly_{uuid4().hex[:12]}_{'0' * 64}") is None
    assert not memory._callers


async def new_key(tenant: Tenant, scope: str = "inference") -> str:
    _, token = await query(issue, tenant, name="k", scopes=[scope], actor=SYSTEM)
    return token
