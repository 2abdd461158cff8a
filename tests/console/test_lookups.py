"""Lists answer what their filters ask, and no other question about a column: by guessing its start it could be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import models
from django.test import Client

from console.site import site
from tenants.models import Role

from .conftest import Yard
from .forms import path

LOOKUPS = ("", "__startswith", "__regex", "__gt", "__iexact", "__contains")
PAGES = sorted(site._registry.items(), key=lambda page: page[0].__name__)


def columns(model: type[models.Model], depth: int = 2) -> Iterator[str]:
    """Every column of a model and of those that it points to, as lookups name them."""
    for field in model._meta.concrete_fields:
        yield field.name
        if depth and isinstance(field, models.ForeignKey):
            yield from (f"{field.name}__{inner}" for inner in columns(field.related_model, depth - 1))


def filtered(page: Any) -> set[str]:
    """The columns that the page's own filters ask about, which stand on it for everybody to see."""
    by_class = {asked.parameter_name for asked in page.list_filter if hasattr(asked, "parameter_name")}
    names = {asked if isinstance(asked, str) else asked[0] for asked in page.list_filter if not isinstance(asked, type)}
    return by_class | names | {f"{name}__id" for name in names}


@pytest.mark.parametrize(("model", "page"), PAGES, ids=[model.__name__ for model, _ in PAGES])
def test_no_column_but_a_listed_filter_s_is_asked_about(model: type[models.Model], page: Any) -> None:
    allowed = {
        f"{column}{lookup}"
        for column in columns(model)
        for lookup in LOOKUPS
        if page.lookup_allowed(f"{column}{lookup}", "x", None)
    }
    assert allowed <= filtered(page) | set(page.linked)


def test_a_hidden_column_can_t_be_read_by_anybody(
    desk: Client, member_of: Callable[..., Client], ours: Yard, strangers: Yard
) -> None:
    from apikeys.models import ApiKey

    for browser in (desk, member_of(ours.tenant, Role.VIEWER)):
        for question in ("mac__startswith=a", "tenant__keys__mac__startswith=a", "prefix__gte=0", "id__gte=0"):
            answer = browser.get(path(ApiKey, "changelist") + "?" + question)
            assert answer.status_code == 400, question


def test_every_filter_and_link_of_a_page_still_works(desk: Client, ours: Yard) -> None:
    from apikeys.models import ApiKey
    from audit.models import Event
    from registry.models import Version

    for url in (
        path(Version, "changelist") + f"?state__exact=ready&adapter__tenant__id__exact={ours.tenant.pk}",
        path(ApiKey, "changelist") + "?revoked_at__isempty=1",
        path(Event, "changelist") + "?actor_kind=system&created_at__gte=2024-01-01 00:00:00%2B00:00",
        path(Event, "changelist") + "?target__exact=acme",
    ):
        assert desk.get(url).status_code == 200, url
