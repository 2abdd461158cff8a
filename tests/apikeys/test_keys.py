"""Keys: what they open, what a refusal tells (nothing), and where a plaintext is ever found (in one answer)."""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from apikeys.models import CONFINABLE, ApiKey, Scope
from apikeys.services import Exceeds, KeyRefused, issue, revoke, rotate, verify
from audit.models import Event
from audit.services import SYSTEM
from tenants.errors import REFUSED
from tenants.models import Tenant
from tenants.services import change_tenant

Clients = Callable[..., APIClient]
ALL = [scope for scope in Scope.values if scope != Scope.PLATFORM]


def new(tenant: Tenant | None, *scopes: str, **fields: object) -> tuple[ApiKey, str]:
    return issue(tenant, name="k", scopes=scopes or ALL, actor=SYSTEM, **fields)  # type: ignore[arg-type]


def bearer(plaintext: str) -> APIClient:
    return APIClient(headers={"Authorization": f"Bearer {plaintext}"})


def test_a_key_opens_its_own_tenant(acme: Tenant, globex: Tenant) -> None:
    key, plaintext = new(acme)
    verified = verify(plaintext)
    assert verified == key
    assert verified.tenant == acme
    assert bearer(plaintext).get("/api/v1/keys").status_code == 200


def test_only_a_mac_is_kept(acme: Tenant) -> None:
    key, plaintext = new(acme)
    secret = plaintext.rsplit("_", 1)[1]
    with connection.cursor() as cursor:
        cursor.execute("SELECT k::text FROM apikeys_apikey k")
        row = cursor.fetchone()[0]
    assert len(bytes.fromhex(secret)) == 32
    assert secret not in row
    assert key.mac in row


def refusals(acme: Tenant) -> dict[str, str | None]:
    """An Authorization header for each way in which a key can fail; None is none at all."""
    _, good = new(acme)
    expired, expired_text = new(acme)
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    revoked, revoked_text = new(acme)
    revoke(revoked, actor=SYSTEM)
    return {
        "missing": None,
        "empty": "",
        "no scheme": good,
        "another scheme": f"Basic {good}",
        "no key": "Bearer ",
        "malformed": "Bearer ly_x",
        "not ours": "Bearer sk-" + "a" * 48,
        "not ASCII": "Bearer ly_é",
        "longer": f"Bearer {good}0",
        "two": f"Bearer {good} {good}",
        "unknown": f"Bearer ly_{'0' * 12}_{'0' * 64}",
        "another secret": f"Bearer {good[:-64]}{'0' * 64}",
        "expired": f"Bearer {expired_text}",
        "revoked": f"Bearer {revoked_text}",
        "SQL": "Bearer ly_' OR '1'='1",
    }


def test_every_refusal_has_the_same_body_and_401(acme: Tenant) -> None:
    for reason, header in refusals(acme).items():
        client = APIClient(headers={"Authorization": header} if header is not None else {})
        answer = client.get("/api/v1/keys")
        assert (answer.status_code, answer.json()) == (401, REFUSED), reason
        assert answer.headers["WWW-Authenticate"] == "Bearer", reason


def test_a_key_short_of_the_scope_is_told_which_and_what_to_do(acme: Tenant) -> None:
    _, plaintext = new(acme, "inference")
    for path, scope in (("keys", "keys:read"), ("adapters", "adapters:read"), ("audit", "audit:read")):
        answer = bearer(plaintext).get(f"/api/v1/{path}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (403, "missing_scope"), path
        assert f"'{scope}'" in error["message"]
        assert "issue a key that has it" in error["message"]
    assert "only an operator's key" in bearer(plaintext).get("/api/v1/tenants").json()["error"]["message"]


def test_an_inactive_tenants_key_is_refused_at_once(acme: Tenant, globex: Tenant) -> None:
    _, plaintext = new(acme)
    change_tenant(acme, actor=SYSTEM, active=False)
    assert verify(plaintext) is None
    assert verify(new(globex)[1]) is not None


def test_the_same_work_is_done_for_every_miss(acme: Tenant, django_assert_num_queries: Callable[..., object]) -> None:
    _, good = new(acme)
    for plaintext in ("", "nonsense", f"ly_{'0' * 12}_{'0' * 64}", good[:-64] + "0" * 64):
        with django_assert_num_queries(1):  # type: ignore[attr-defined]
            assert verify(plaintext) is None


def test_revoking_works_at_once_and_is_recorded_once(acme: Tenant) -> None:
    key, plaintext = new(acme)
    client = bearer(plaintext)
    revoke(key, actor=SYSTEM)
    revoke(key, actor=SYSTEM)
    assert client.get("/api/v1/keys").status_code == 401
    assert Event.objects.for_tenant(acme).filter(action="key:revoked").count() == 1


def test_rotation_gives_the_old_key_its_grace_and_no_more(acme: Tenant) -> None:
    key, old = new(acme, "inference", adapters=["support"])
    fresh, plaintext = rotate(key, grace=timedelta(hours=1), actor=SYSTEM)
    assert verify(old) is not None
    assert verify(plaintext) == fresh
    assert (fresh.scopes, fresh.adapters) == (["inference"], ["support"])
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now())
    assert verify(old) is None
    with pytest.raises(KeyRefused):
        rotate(key, actor=SYSTEM)


def test_rotation_without_grace_ends_the_old_key_at_once(acme: Tenant) -> None:
    key, old = new(acme)
    rotate(key, actor=SYSTEM)
    assert verify(old) is None


def test_last_use_is_noted_once_a_minute(acme: Tenant, django_assert_num_queries: Callable[..., object]) -> None:
    key, plaintext = new(acme)
    verify(plaintext)
    first = ApiKey.objects.get(pk=key.pk).last_used_at
    assert first is not None
    with django_assert_num_queries(1):  # type: ignore[attr-defined]
        verify(plaintext)
    ApiKey.objects.filter(pk=key.pk).update(last_used_at=first - timedelta(seconds=61))
    verify(plaintext)
    assert ApiKey.objects.get(pk=key.pk).last_used_at >= first  # type: ignore[operator]


@pytest.mark.django_db(transaction=True)
def test_a_busy_key_never_waits_for_a_lock_on_its_row(acme: Tenant) -> None:
    key, plaintext = new(acme)
    answers: list[ApiKey | None] = []

    def use() -> None:
        try:
            answers.append(verify(plaintext))
        finally:
            connection.close()

    with transaction.atomic():
        ApiKey.objects.select_for_update().get(pk=key.pk)
        thread = threading.Thread(target=use)
        thread.start()
        thread.join(timeout=60)
        assert answers == [key]


@pytest.mark.parametrize(
    ("issuer", "wanted"),
    [
        ({"scopes": ["keys:write"]}, {"scopes": ["inference"]}),
        ({"scopes": ["keys:write"]}, {"scopes": ["keys:write", "adapters:write"]}),
        ({"expires_at": timezone.now() + timedelta(days=1)}, {"expires_at": None}),
        ({"expires_at": timezone.now() + timedelta(days=1)}, {"expires_at": timezone.now() + timedelta(days=2)}),
    ],
)
def test_a_key_hands_out_no_more_than_it_holds(
    acme: Tenant, issuer: dict[str, object], wanted: dict[str, object]
) -> None:
    parent, _ = new(acme, *issuer.pop("scopes", []), **issuer)  # type: ignore[misc]
    with pytest.raises(Exceeds):
        new(acme, *wanted.pop("scopes", ["keys:write"]), issuer=parent, **wanted)  # type: ignore[misc]
    assert ApiKey.objects.count() == 1


WIDE = sorted(set(ALL) - CONFINABLE)


def test_what_is_about_the_whole_tenant_is_known_and_a_new_scope_is_so_until_somebody_says_else() -> None:
    assert [
        *("audit:read", "budgets:read", "budgets:write", "keys:read", "keys:write", "webhooks:read", "webhooks:write")
    ] == WIDE


@pytest.mark.parametrize("scope", WIDE)
def test_a_key_confined_to_adapters_holds_nothing_about_the_whole_tenant(acme: Tenant, scope: str) -> None:
    answer = bearer(new(acme)[1]).post(
        "/api/v1/keys", {"name": "k", "scopes": ["inference", scope], "adapters": ["support"]}, format="json"
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_key", "scopes")
    assert scope in error["message"]
    assert ApiKey.objects.count() == 1


def confined_long_ago(tenant: Tenant) -> tuple[ApiKey, str]:
    """As an earlier release issued them."""
    key, plaintext = new(tenant, *ALL)
    ApiKey.objects.filter(pk=key.pk).update(adapters=["support"])
    key.refresh_from_db()
    return key, plaintext


def test_one_that_was_issued_before_can_do_nothing_about_the_whole_tenant(acme: Tenant, globex: Tenant) -> None:
    owner, owners = new(acme)
    _, plaintext = confined_long_ago(acme)
    client = bearer(plaintext)
    for path in ("audit", "audit/export", "webhooks", "budgets", "keys", "signing-keys", "signing-policy"):
        answer = client.get(f"/api/v1/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), path
        assert "not confined" in answer.json()["error"]["message"]
    assert client.post(f"/api/v1/keys/{owner.pk}/revoke").status_code == 403
    assert client.post("/api/v1/webhooks", {"url": "https://a.example/", "events": ["*"]}).status_code == 403
    assert verify(owners) is not None
    assert client.get("/api/v1/adapters").status_code == 200
    assert client.get("/api/v1/usage").status_code == 200
    assert bearer(new(globex)[1]).get("/api/v1/keys").status_code == 200


def test_rotated_it_keeps_what_it_may_do_and_loses_the_rest(acme: Tenant) -> None:
    key, _ = confined_long_ago(acme)
    fresh, _ = rotate(key, actor=SYSTEM)
    assert (set(fresh.scopes), fresh.adapters) == (set(ALL) - set(WIDE), ["support"])
    useless, _ = new(acme, "audit:read")
    ApiKey.objects.filter(pk=useless.pk).update(adapters=["support"])
    with pytest.raises(KeyRefused):
        rotate(useless, actor=SYSTEM)


def test_a_key_ends_only_keys_that_may_do_no_more_than_itself(acme: Tenant) -> None:
    owner, owners = new(acme)
    lesser, lessers = new(acme, "keys:write", "inference")
    helper, helpers = new(acme, "keys:write")
    answer = bearer(helpers).post(f"/api/v1/keys/{owner.pk}/revoke")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "exceeds_own_rights")
    assert bearer(helpers).post(f"/api/v1/keys/{lesser.pk}/revoke").status_code == 403
    assert verify(owners) is not None
    assert verify(lessers) is not None
    assert bearer(lessers).post(f"/api/v1/keys/{helper.pk}/revoke").status_code == 200
    assert bearer(lessers).post(f"/api/v1/keys/{lesser.pk}/revoke").status_code == 200, "itself it may always end"
    other, _ = new(acme, "inference", adapters=["support"])
    assert bearer(owners).post(f"/api/v1/keys/{other.pk}/revoke").status_code == 200


def test_a_key_cannot_rotate_one_that_may_do_more(acme: Tenant, globex: Tenant) -> None:
    strong, plaintext = new(acme)
    answer = bearer(new(acme, "keys:write")[1]).post(f"/api/v1/keys/{strong.pk}/rotate")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "exceeds_own_rights"
    assert verify(plaintext) is not None


def test_the_operators_scope_stands_alone_on_a_key_without_a_tenant(acme: Tenant) -> None:
    for tenant, scopes in ((acme, ["platform"]), (acme, ["platform", "inference"]), (None, ["inference"]), (None, ALL)):
        with pytest.raises(KeyRefused):
            new(tenant, *scopes)
    key, _ = new(None, "platform")
    assert key.may("tenants:write")
    assert not key.may("inference")
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.filter(pk=key.pk).update(tenant=acme)


def test_a_tenants_key_issues_over_the_api_and_the_plaintext_is_nowhere_else(
    acme: Tenant, client_of: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = client_of(acme)
    body = {"name": "ci", "scopes": ["inference"], "adapters": ["support"], "expires_at": "2099-01-01T00:00:00Z"}
    answer = client.post("/api/v1/keys", body, format="json")
    assert answer.status_code == 201
    assert answer.headers["Cache-Control"] == "no-store"
    plaintext = answer.json()["key"]
    assert verify(plaintext) is not None
    secret = plaintext.rsplit("_", 1)[1]
    pk = answer.json()["id"]
    pages = [client.get(path).content.decode() for path in ("/api/v1/keys", f"/api/v1/keys/{pk}", "/api/v1/audit")]
    assert pk in pages[0] and pk in pages[1] and pk in pages[2]  # noqa: PT018
    wrong = bearer(plaintext[:-1] + "x").get("/api/v1/keys")
    with connection.cursor() as cursor:
        cursor.execute("SELECT string_agg(e::text, ' ') FROM audit_event e")
        rows = cursor.fetchone()[0]
    for place in (*pages, rows, caplog.text, wrong.content.decode(), repr(ApiKey.objects.get(pk=pk).__dict__)):
        assert secret[:-1] not in place


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"scopes": ["inference"]}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes.0"),
        ({"name": "x", "scopes": "inference"}, "scopes"),
        ({"name": "x", "scopes": ["inference"], "expires_at": "2000-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "x", "scopes": ["inference"], "expires_at": "soon"}, "expires_at"),
        ({"name": "x", "scopes": ["inference"], "tenant": "globex"}, "tenant"),
        ({"name": "x", "scopes": ["inference"], "mac": "0"}, "mac"),
        ({"name": "x", "scopes": ["platform"]}, "scopes"),
    ],
)
def test_a_wrong_field_is_named(
    acme: Tenant, globex: Tenant, client_of: Clients, body: dict[str, object], param: str
) -> None:
    client = client_of(acme)
    answer = client.post("/api/v1/keys", body, format="json")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert ApiKey.objects.count() == 1


def test_a_stranger_gets_404_for_a_key_that_exists(acme: Tenant, globex: Tenant, client_of: Clients) -> None:
    key, plaintext = new(acme)
    stranger = client_of(globex)
    answers = [
        stranger.get(f"/api/v1/keys/{key.pk}"),
        stranger.post(f"/api/v1/keys/{key.pk}/revoke"),
        stranger.post(f"/api/v1/keys/{key.pk}/rotate"),
        stranger.get("/api/v1/keys?tenant=acme"),
        stranger.get("/api/v1/keys?tenant=no-such"),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert str(key.pk) not in stranger.get("/api/v1/keys").content.decode()
    assert verify(plaintext) is not None


def test_an_operator_names_the_tenant_and_else_sees_the_operators_keys(acme: Tenant, client_of: Clients) -> None:
    operator = client_of(None)
    made = operator.post("/api/v1/keys?tenant=acme", {"name": "x", "scopes": ["inference"]}, format="json").json()
    assert made["tenant"] == "acme"
    assert [row["id"] for row in operator.get("/api/v1/keys?tenant=acme").json()["results"]] == [made["id"]]
    assert [row["tenant"] for row in operator.get("/api/v1/keys").json()["results"]] == [None]
    assert operator.get("/api/v1/keys?tenant=no-such").status_code == 404
    assert operator.get("/api/v1/keys?tenant=%00").status_code == 404


def test_rotate_and_revoke_over_the_api(acme: Tenant, client_of: Clients) -> None:
    key, old = new(acme, "inference")
    client = client_of(acme)
    answer = client.post(f"/api/v1/keys/{key.pk}/rotate", {"grace_seconds": 60}, format="json")
    assert answer.status_code == 201
    fresh = answer.json()
    assert verify(old) is not None
    assert client.post(f"/api/v1/keys/{fresh['id']}/revoke").json()["revoked_at"] is not None
    assert verify(fresh["key"]) is None


def test_the_command_prints_the_key_and_nothing_else(acme: Tenant, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_key", "acme", "--scope", "inference", "--adapter", "support", "--days", "7")
    key = verify(capsys.readouterr().out.strip())
    assert key is not None
    assert (key.tenant, key.scopes, key.adapters) == (acme, ["inference"], ["support"])
    call_command("create_key")
    operator = verify(capsys.readouterr().out.strip())
    assert operator is not None
    assert (operator.tenant, operator.scopes) == (None, ["platform"])
    with pytest.raises(CommandError, match="no tenant"):
        call_command("create_key", "no-such")
    with pytest.raises(CommandError, match="stands alone"):
        call_command("create_key", "acme", "--scope", "platform")


def test_the_command_gives_a_confined_key_all_that_such_a_key_can_hold(
    acme: Tenant, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("create_key", "acme", "--adapter", "support")
    key = verify(capsys.readouterr().out.strip())
    assert key is not None
    assert (set(key.scopes), key.adapters) == (set(CONFINABLE), ["support"])
