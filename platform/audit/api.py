"""What every management view is told about its caller. Knows no keys: `apikeys.permissions` finds out and attaches.

It lives here, at the bottom, because every app that serves the management API stands on `audit`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from django.db.models import Model
from rest_framework.generics import GenericAPIView
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from audit.requests import request_id
from audit.services import Actor

M = TypeVar("M", bound=Model)


class Newest(CursorPagination):
    """Cursors, never offsets. A view says its order in `ordering`."""

    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 200

    def get_ordering(self, request: Any, queryset: Any, view: Any) -> tuple[str, ...]:
        ordering: tuple[str, ...] = view.ordering
        return ordering


class Management(GenericAPIView[M]):
    """Base of the views under /api/v1/.

    `scopes` maps each HTTP method to the scope it needs; a method without one is refused. `needs_tenant` views answer
    400 to an operator who names none. The permission class sets `tenant` and `actor` before a handler runs.
    """

    scopes: ClassVar[Mapping[str, str]] = {}
    needs_tenant: ClassVar[bool] = True
    ordering: ClassVar[tuple[str, ...]] = ("-created_at",)
    pagination_class = Newest
    tenant: Any = None
    actor: Actor

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        final = super().finalize_response(request, response, *args, **kwargs)
        final.headers.setdefault("x-request-id", request_id(request))
        return final
