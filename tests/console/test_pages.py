"""Every page of the console, found by itself, opened with real rows of every kind: none errors, none leaks."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from apikeys.models import ApiKey
from audit.models import Event
from audit.services import SYSTEM
from console.site import CONTENT_SECURITY_POLICY, site
from evaluations.models import Evaluation, EvaluationSet
from evaluations.services import create_set, request_evaluation
from metering import ledger
from metering.models import Budget, Call, DailyUsage, Outcome
from metering.services import create_budget
from registry.models import Adapter, Alias, BaseModel, State, Version
from rollouts.models import Rollout
from rollouts.services import Plan, create_rollout
from tenants.models import Tenant
from webhooks.models import Endpoint
from webhooks.services import create_endpoint, ping

MODELS = [Adapter, Alias, ApiKey, BaseModel, Budget, DailyUsage, Event, Rollout, Tenant, User, Version]
MODELS += [Endpoint, Evaluation, EvaluationSet]
LINE = b'{"messages": [{"role": "user", "content": "hi"}], "scorer": "exact", "expected": "hello"}'
AWKWARD = ["nothing-here", "0", "99999999999999999999", "00000000-0000-0000-0000-000000000000", "_", "%FF", "<script>"]
QUERIES = [
    *("q=support", "q=%25_%27%22%5C", "p=2", "p=x", "o=1", "o=-2.1", "o=99", "all=", "e=1"),
    *("_facets=True", "nonsense=1", "id__exact=x", "pk__regex=(", "id__gte=%C3%28"),
]


def admin_patterns() -> list[URLPattern]:
    def walk(resolver: Any) -> Iterator[URLPattern]:
        for entry in resolver.url_patterns:
            yield from walk(entry) if isinstance(entry, URLResolver) else [entry]

    console = next(r for r in get_resolver().url_patterns if getattr(r, "app_name", "") == "admin" or _holds(r))
    return list(walk(console))


def _holds(resolver: Any) -> bool:
    return isinstance(resolver, URLResolver) and any(
        getattr(entry, "app_name", "") == "admin" for entry in resolver.url_patterns
    )


def url(model: type[Any], page: str, *args: object) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{page}", args=args)


@pytest.fixture(autouse=True)
def _whole(ours: Any, strangers: Any) -> None:
    """Both tenants have rows of every kind."""
    for yard in (ours, strangers):
        digest = f"sha256:{2 * yard.tenant.pk.hex}"
        Version.objects.create(adapter=yard.adapter, number=9, state=State.READY, digest=digest, uploader="test")
        create_rollout(yard.adapter, Plan(version=9), actor=SYSTEM)
        greetings = create_set(yard.tenant, f"{yard.tenant.slug}-greetings", LINE, actor=SYSTEM)
        request_evaluation(yard.tenant, greetings, f"{yard.adapter.name}@v9", actor=SYSTEM)
        endpoint, _ = create_endpoint(yard.tenant, f"https://{yard.tenant.slug}.example/hook", ["*"], actor=SYSTEM)
        ping(endpoint)
        create_budget(yard.tenant, period="day", tokens=100, key=yard.key.pk, actor=SYSTEM)
        call = {"tenant": yard.tenant, "key": yard.key.pk, "adapter": yard.adapter.name, "outcome": Outcome.FINISHED}
        ledger.write([Call(**call, prompt=70)])
    ledger.sum_up()


def rows() -> list[Any]:
    return [row for model in MODELS for row in model._default_manager.all()]


def test_the_console_shows_these_models_and_no_others() -> None:
    assert set(site._registry) == set(MODELS)


def test_no_page_errors_for_an_operator(desk: Client) -> None:
    """Every pattern of the site, with every row that its model has, and with what is no row at all."""
    opened: dict[str, set[int]] = {}
    for pattern in admin_patterns():
        if pattern.name is None:  # Django's way from /<id>/ to /<id>/change/
            continue
        name = f"admin:{pattern.name}"
        admin = next((a for a in site._registry.values() if str(pattern.name).startswith(_prefix(a))), None)
        for arguments in _arguments(pattern, admin):
            answer = desk.get(reverse(name, args=arguments))
            designed = (405,) if pattern.name == "logout" else (200, 302, 403, 404)
            assert answer.status_code in designed, (name, arguments, answer.status_code)
            opened.setdefault(name, set()).add(answer.status_code)
    unseen = {name for name, statuses in opened.items() if 200 not in statuses and 302 not in statuses}
    forbidden = {f"admin:{_prefix(a)}delete" for a in site._registry.values()}
    nothing_to_add = {"admin:registry_alias_add", "admin:registry_basemodel_add", "admin:audit_event_add"}
    nothing_to_add |= {"admin:metering_dailyusage_add"}
    assert unseen == forbidden | nothing_to_add | {"admin:autocomplete", "admin:view_on_site", "admin:logout"}
    assert len(opened) > 50


def _prefix(admin: Any) -> str:
    return f"{admin.opts.app_label}_{admin.opts.model_name}_"


def _arguments(pattern: URLPattern, admin: Any) -> list[list[object]]:
    wanted = list(pattern.pattern.converters) or list(pattern.pattern.regex.groupindex)
    match wanted:
        case []:
            return [[]]
        case ["object_id"] if admin is not None:
            return [[row.pk] for row in admin.model._default_manager.all()] + [[text] for text in AWKWARD]
        case ["app_label"]:
            return [[label] for label in sorted({a.opts.app_label for a in site._registry.values()})]
        case ["content_type_id", "object_id"]:
            return [["1", "1"], ["x", "y"]]
    raise AssertionError(f"{pattern} takes {wanted}, which this test does not know")


@pytest.mark.parametrize("model", MODELS)
def test_no_search_order_or_filter_errors(desk: Client, model: type[Any]) -> None:
    listing = url(model, "changelist")
    page = desk.get(listing)
    offered = {link for link in re.findall(r'href="(\?[^"]+)"', page.content.decode())}
    for query in [*(f"?{query}" for query in QUERIES), *(link.replace("&amp;", "&") for link in offered)]:
        assert desk.get(listing + query).status_code in (200, 302, 400), query


@pytest.mark.parametrize("model", MODELS)
def test_every_filter_filters(desk: Client, model: type[Any]) -> None:
    listing = url(model, "changelist")
    for spec in desk.get(listing).context["cl"].filter_specs:
        for parameter in spec.expected_parameters():
            for value in ("", "ready", "1", "0", "True", "x", "2024-01-01", *(str(t.pk) for t in Tenant.objects.all())):
                assert desk.get(listing, {parameter: value}).status_code in (200, 302, 400), (parameter, value)


@pytest.mark.parametrize("page", ["/", "/login/", "/search/", "/autocomplete/", "/registry/version/"])
def test_a_nul_byte_is_a_bad_request(desk: Client, page: str) -> None:
    assert desk.get(page, {"s": "a\0b"}).status_code == 400


def test_pages_that_only_show_refuse_to_save(desk: Client) -> None:
    for row in rows():
        model = type(row)
        assert desk.post(url(model, "change", row.pk), {"name": "x"}).status_code == 403
        assert desk.post(url(model, "delete", row.pk), {"post": "yes"}).status_code == 403


def test_anonymous_people_are_sent_to_the_login(client: Client) -> None:
    for pattern in admin_patterns():
        if pattern.name in ("login", None):
            continue
        wanted = list(pattern.pattern.converters) or list(pattern.pattern.regex.groupindex)
        arguments = ["audit" if name == "app_label" else "1" for name in wanted]
        path = reverse(f"admin:{pattern.name}", args=arguments)
        for answer in (client.get(path), client.post(path, {"name": "x"})):
            expected = "/" if pattern.name == "logout" else "/login/"
            assert answer.status_code == 302, path
            assert answer.headers["Location"].startswith(expected), path


def test_an_unknown_path_is_a_404_for_everybody(client: Client, desk: Client) -> None:
    assert client.get("/nothing/here").status_code == 404
    assert desk.get("/api/v1/nothing").status_code == 404


def test_somebody_who_is_not_of_the_staff_stays_outside(browser: Callable[[User], Client]) -> None:
    visitor = browser(User.objects.create_user("victor", is_staff=False))
    assert visitor.get("/registry/version/").headers["Location"].startswith("/login/")


def test_a_member_sees_every_page_of_their_own_and_nothing_of_a_strangers(
    member_of: Callable[..., Client], ours: Any, strangers: Any
) -> None:
    member = member_of(ours.tenant)
    secrets = {strangers.tenant.slug, "Globex", str(strangers.tenant.pk), strangers.key.prefix, str(strangers.ready.pk)}
    for row in rows():
        for page in ("change", "history", *(verb.slug for verb in site._registry[type(row)].verbs)):  # type: ignore[attr-defined]
            answer = member.get(url(type(row), page, row.pk))
            assert answer.status_code in (200, 302, 403)
            if _tenant(row) == ours.tenant or isinstance(row, BaseModel):
                assert page != "change" or answer.status_code == 200, row
                assert not _told(answer, secrets), (row, page)
            else:
                assert answer.status_code in (302, 403), (row, page)
                assert answer.headers.get("Location", "/") == "/", (row, page)
                assert not _told(answer, secrets), (row, page)
                member.get("/")  # where it is said that there is no such row, by the id that was asked for


def test_a_member_finds_nothing_of_a_strangers_in_any_list_or_search(
    member_of: Callable[..., Client], ours: Any, strangers: Any
) -> None:
    member = member_of(ours.tenant)
    secrets = {"globex", "Globex", strangers.key.prefix, str(strangers.ready.pk)}
    for model in MODELS:
        listing = url(model, "changelist")
        if model is User:
            assert member.get(listing).status_code == 403
            continue
        assert not _told(member.get(listing), secrets), model
        for parameter in ("tenant__id__exact", "adapter__tenant__id__exact", "adapter__id__exact"):
            foreign = strangers.adapter.pk if parameter.startswith("adapter__id") else strangers.tenant.pk
            assert not _told(member.get(listing, {parameter: str(foreign)}), {"globex-support", "Globex"}), parameter
    for page in ("/", "/engine/", "/search/?s=globex&extended=1", "/search/?s=support&extended=1"):
        assert not _told(member.get(page), secrets - {"globex"} if "s=globex" in page else secrets), page
    for field in (
        ("registry", "adapter", "tenant"),
        ("registry", "version", "adapter"),
        ("apikeys", "apikey", "tenant"),
    ):
        query = dict(zip(("app_label", "model_name", "field_name"), field, strict=True))
        results = member.get("/autocomplete/", {**query, "term": ""}).json()["results"]
        assert results
        assert not any("globex" in result["text"] for result in results)


def test_a_member_is_not_told_of_what_operators_alone_see(member_of: Callable[..., Client], ours: Any) -> None:
    member = member_of(ours.tenant)
    base = BaseModel.objects.get()
    assert base.source not in member.get(url(BaseModel, "change", base.pk)).content.decode()
    assert not _told(member.get("/"), {"People"})


def test_staff_without_a_tenant_see_an_empty_console(member_of: Callable[..., Client], ours: Any) -> None:
    nobody = member_of()
    assert nobody.get("/").status_code == 200
    assert not _told(nobody.get("/"), {"acme"})
    for model in MODELS:
        assert nobody.get(url(model, "changelist")).status_code == 403


def test_the_palette_finds_rows_by_name(desk: Client, ours: Any) -> None:
    found = desk.get("/search/", {"s": "acme-support", "extended": "1"}).content.decode()
    assert url(Adapter, "change", ours.adapter.pk) in found
    assert url(Version, "change", ours.ready.pk) in found
    pinned = desk.get("/search/", {"s": f"{ours.ready}", "extended": "1"}).content.decode()
    assert url(Version, "change", ours.ready.pk) in pinned
    assert url(Version, "change", ours.waiting.pk) not in pinned
    assert (
        url(Version, "change", ours.ready.pk)
        in desk.get("/registry/version/", {"q": ours.ready.digest}).content.decode()
    )
    assert url(Alias, "change", ours.alias.pk) in desk.get("/registry/alias/", {"q": str(ours.alias)}).content.decode()
    assert desk.get("/search/", {"s": "acme", "page": "nonsense"}).status_code == 200
    assert desk.get("/search/").content == b""


def test_pages_carry_a_policy_and_fetch_nothing_from_elsewhere(client: Client, desk: Client, ours: Any) -> None:
    for answer in (client.get("/login/"), desk.get("/"), desk.get(url(Version, "change", ours.ready.pk))):
        assert answer.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
        text = answer.content.decode()
        assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
        assert not re.findall(r"<script(?![^>]*\bsrc=)", text)
        assert not re.findall(r"\son(?:click|load|submit|change)=", text)


def test_what_was_uploaded_is_never_markup(desk: Client, ours: Any) -> None:
    assert "<b>adapter" not in desk.get(url(Version, "change", ours.rejected.pk)).content.decode()


@pytest.mark.parametrize(
    "model",
    [Adapter, Alias, ApiKey, Budget, DailyUsage, Endpoint, Evaluation, EvaluationSet, Event, Rollout, Tenant, Version],
)
def test_a_list_asks_the_database_as_often_for_many_rows_as_for_few(
    desk: Client, model: type[Any], ours: Any, django_assert_max_num_queries: Any
) -> None:
    listing = url(model, "changelist")
    desk.get(listing)
    with django_assert_max_num_queries(12) as all_rows:
        desk.get(listing)
    with django_assert_max_num_queries(12) as one_row:
        desk.get(listing, {"q": str(model._default_manager.first())[:8]})
    assert len(all_rows) <= len(one_row) + 1


def _tenant(row: Any) -> Tenant | None:
    if isinstance(row, Tenant):
        return row
    owner = row if hasattr(row, "tenant") else getattr(row, "adapter", row)
    tenant: Tenant | None = getattr(owner, "tenant", None)
    return tenant


def _told(answer: Any, words: set[str]) -> list[str]:
    text = answer.content.decode()
    return [word for word in words if word in text]
