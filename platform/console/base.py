"""What every page about a model shares: it shows, it never saves. Changes are verbs (`console.verbs`).

Rows are the person's tenants' own; for an operator, everybody's.
"""

import re
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib.admin import SimpleListFilter
from django.contrib.admin import display as admin_display
from django.db.models import Count, Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode

from console import actors
from console.access import access_of
from console.verbs import Verb

if TYPE_CHECKING:
    from django.contrib import admin
    from django.contrib.admin.views.main import ChangeList

    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
else:
    from unfold.admin import ChangeList, ModelAdmin, TabularInline

# What the filters ask of the column that they are about.
ASKED_OF_A_FILTER = re.compile(r"(__id|__pk)?(__(exact|in|isnull|isempty|gte|lt))?")


class ConsoleAdmin(ModelAdmin):
    """List and page of one model, read only.

    `tenant_path` leads from a row to its tenant's id; None: the rows are the operators' alone. `adds` makes a new row;
    `verbs` are what can be done to one. `found` says whether the palette looks among the rows; `icon` stands beside a
    result there. `actor_field` names the column, or the property, that says who made a row: the page calls them `by`.
    `linked` are lookups that links of ours use besides what the filters ask.
    """

    tenant_path: ClassVar[str | None] = None
    adds: ClassVar[type[Verb] | None] = None
    verbs: ClassVar[tuple[type[Verb], ...]] = ()
    found: ClassVar[bool] = True
    icon: ClassVar[str] = ""
    actor_field: ClassVar[str] = ""
    linked: ClassVar[tuple[str, ...]] = ()

    actions = None
    list_per_page = 50
    show_full_result_count = False
    list_filter_submit = True
    compressed_fields = True

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows, access = super().get_queryset(request), access_of(request)
        if access.operator:
            return rows
        return rows.filter(**{f"{self.tenant_path}__in": access.tenants}) if self.tenant_path else rows.none()

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """One read per request: the page, its verbs and its permissions ask for the same row."""
        seen = request.__dict__.setdefault("_console_objects", {})
        key = (self.model, object_id, from_field)
        if key not in seen:
            seen[key] = super().get_object(request, object_id, from_field)
            if self.actor_field and seen[key] is not None:
                actors.name([seen[key]], self.actor_field)
        return seen[key]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> "type[ChangeList]":
        return ConsoleList

    @admin_display(description="By")
    def by(self, obj: Any) -> str:
        return str(obj.actor_name)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return [name for _, options in self.get_fieldsets(request, obj) for name in options["fields"]]

    def tenant_of(self, obj: Any) -> Any:
        if self.tenant_path is None:
            return None
        for part in self.tenant_path.split("__"):
            obj = getattr(obj, part)
        return obj

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        access = access_of(request)
        if obj is None:
            return access.operator or (self.tenant_path is not None and bool(access.roles))
        return access.sees(self.tenant_of(obj))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.adds is not None and access_of(request).may_somewhere(self.adds.role)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        """Listed filters alone: a lookup on any other column would tell, question by question, what it holds."""
        return lookup in self.linked or any(_asks(asked, lookup) for asked in self.get_list_filter(request))  # type: ignore[arg-type]

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """Names may be typed as they are written: `acme/support@champion` finds by its parts."""
        return super().get_search_results(request, queryset, search_term.replace("/", " ").replace("@", " "))

    def get_urls(self) -> list[URLPattern]:
        verbs = [
            path(f"<path:object_id>/{verb.slug}/", verb.entry(self), name=self.name_of(verb)) for verb in self.verbs
        ]
        adds = [path("add/", self.adds.entry(self), name=f"{self._prefix}_add")] if self.adds else []
        return [*verbs, *adds, *super().get_urls()]

    def name_of(self, verb: type[Verb]) -> str:
        return f"{self._prefix}_{verb.slug}"

    def url_of(self, row: Model) -> str:
        """The page of a row, of this model or of another that the console shows."""
        return reverse(f"{self.admin_site.name}:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])

    def url_of_list(self) -> str:
        return reverse(f"{self.admin_site.name}:{self._prefix}_changelist")

    def missing(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The answer for what is not there and for what is somebody else's: the same."""
        return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        obj = kwargs.get("obj")
        context["actions_detail"] = self._buttons(request, obj) if obj is not None else []
        return super().render_change_form(request, context, *args, **kwargs)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """What the audit chain says about this row; Django's own log is not kept."""
        obj = self.get_object(request, object_id)
        if obj is None:
            return self.missing(request, object_id)
        events = reverse(f"{self.admin_site.name}:audit_event_changelist")
        return HttpResponseRedirect(f"{events}?{urlencode({'target__exact': self.target_of(obj)})}")

    def target_of(self, obj: Any) -> str:
        """How audit events name the row."""
        return str(obj)

    @property
    def _prefix(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}"

    def _buttons(self, request: HttpRequest, obj: Model) -> list[dict[str, Any]]:
        """The verbs that this person may use on this row now, as unfold's buttons."""
        access = access_of(request)
        return [
            {
                "title": verb.title,
                "icon": verb.icon,
                "variant": "danger" if verb.danger else "default",
                "attrs": {},
                "path": reverse(f"{self.admin_site.name}:{self.name_of(verb)}", args=[obj.pk]),
            }
            for verb in self.verbs
            if access.may(verb.role, self.tenant_of(obj)) and verb.applies(obj)
        ]


class ConsoleList(ChangeList):
    """A page of rows, and the names of those who made them."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if field := self.model_admin.actor_field:  # type: ignore[attr-defined]
            self.result_list = list(self.result_list)
            actors.name(self.result_list, field)


def _asks(asked: Any, lookup: str) -> bool:
    """Whether the filter that a page lists so would ask this lookup."""
    if isinstance(asked, type) and issubclass(asked, SimpleListFilter):
        return lookup == asked.parameter_name
    field = asked if isinstance(asked, str) else asked[0]
    return lookup.startswith(field) and ASKED_OF_A_FILTER.fullmatch(lookup.removeprefix(field)) is not None


def counted(rows: QuerySet[Any], column: str) -> Coalesce:
    """How many of `rows` point to a row by `column`: asked for the rows of one page, never joined for all."""
    mine = rows.order_by().filter(**{column: OuterRef("pk")}).values(column)
    return Coalesce(Subquery(mine.annotate(count_=Count("pk")).values("count_")), 0)


class ConsoleInline(TabularInline):
    """Rows of a page's object, read only; whoever sees the page sees them."""

    extra = 0
    can_delete = False
    hide_title = True
    per_page = 20

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
