"""The console's pages as one Django admin site: who gets in, what headers go out, the dashboard and the search."""

import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from audit.models import Action
from audit.services import record
from console import signing_in
from console.access import actor_of, put_in_scope
from tenants.isolation import across_every_tenant

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite, ModelAdmin
else:
    from unfold.sites import UnfoldAdminSite as AdminSite

# Alpine evaluates the expressions in unfold's markup, and unfold writes its colours into a style element.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
FOUND_PER_MODEL = 8

View = Callable[..., Any]


class ConsoleSite(AdminSite):
    index_title = "Dashboard"
    index_template = "console/dashboard.html"
    final_catch_all_view = False  # an unknown path is a 404 for everybody, not a login page

    def admin_view(self, view: Any, cacheable: bool = False) -> Any:
        return guarded(super().admin_view(view, cacheable))

    def login(self, request: HttpRequest, extra_context: Any = None) -> Any:
        return guarded(signing_in.recorded(super().login))(request, extra_context)

    def extra_urls(self) -> list[URLPattern]:
        """Unfold asks for these."""
        from console.dashboard import engine

        return [path("engine/", self.admin_view(engine), name="engine")]

    def index(self, request: HttpRequest, extra_context: Any = None) -> Any:
        from console.dashboard import overview

        return super().index(request, {**overview(request), **(extra_context or {})})

    def password_change(self, request: HttpRequest, extra_context: Any = None) -> Any:
        with transaction.atomic():
            response = super().password_change(request, extra_context)
            if request.method == "POST" and response.status_code == 302:
                target = f"user:{request.user.pk}"
                with across_every_tenant():  # the platform's chain is no tenant's
                    record(Action.USER_PASSWORD_CHANGED, tenant=None, actor=actor_of(request), target=target)
        return response

    def shows(self, model: str, request: HttpRequest) -> bool:
        """Whether the person may list this model, named as in URLs: "registry_version"."""
        return any(
            admin.has_view_permission(request) for admin in self._registry.values() if model == _label(admin.opts)
        )

    def search(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """The palette's results: a few of every model, fresh, and from no more than the person's own rows."""
        started = time.perf_counter()
        term = request.GET.get("s", "").strip()[:200]
        if not term:
            return HttpResponse()
        results = list(self._found(request, term))
        page = Paginator(results, max(len(results), 1)).page(1)
        context = {
            "page_obj": page.paginator,
            "results": page,
            "page_counter": 0,
            "execution_time": time.perf_counter() - started,
            "command_show_history": False,
        }
        return TemplateResponse(
            request, "unfold/helpers/command_results.html", context, headers={"HX-Trigger": "search"}
        )

    def _found(self, request: HttpRequest, term: str) -> Iterator[dict[str, str]]:
        for admin in self._registry.values():
            if not getattr(admin, "found", False) or not admin.has_view_permission(request):
                continue
            rows = admin.get_queryset(request).select_related(*_related(admin))
            rows, _ = admin.get_search_results(request, rows, term)
            for row in rows[:FOUND_PER_MODEL]:
                link = reverse(f"{self.name}:{_label(admin.opts)}_change", args=[row.pk])
                yield {
                    "title": str(row),
                    "description": str(admin.opts.verbose_name),
                    "link": link,
                    "icon": getattr(admin, "icon", ""),
                }


def guarded(view: View) -> View:
    """Refuses NUL bytes, which PostgreSQL cannot hold and no form field is needed to meet; sends the policy."""

    @wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        if "\0" in request.path or any("\0" in text for pair in request.GET.lists() for text in (pair[0], *pair[1])):
            raise BadRequest("NUL in the address")
        put_in_scope(request)
        response = view(request, *args, **kwargs)
        response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        return response

    return inner


def _label(opts: Any) -> str:
    return f"{opts.app_label}_{opts.model_name}"


def _related(admin: "ModelAdmin[Any]") -> tuple[str, ...]:
    related = admin.list_select_related
    return tuple(related) if isinstance(related, list | tuple) else ()


site = ConsoleSite()
