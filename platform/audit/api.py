"""What every management view is told about its caller. Knows no keys: `apikeys.permissions` finds out and attaches.

It lives here, at the bottom, because every app that serves the management API stands on `audit`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from django.core.exceptions import ValidationError
from django.db import DataError
from django.db.models import Model
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.generics import GenericAPIView
from rest_framework.pagination import CursorPagination
from rest_framework.parsers import JSONParser
from rest_framework.request import Request
from rest_framework.response import Response

from audit.requests import request_id
from audit.services import Actor

M = TypeVar("M", bound=Model)


class Strict(serializers.Serializer[Any]):
    """Names what it does not know instead of ignoring it."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            settable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = sorted(str(name) for name in set(data) - settable)
            if unknown:
                raise serializers.ValidationError({name: "Unknown, or not to be set." for name in unknown})
        return super().to_internal_value(data)


class Cursor(CursorPagination):
    """Cursors, never offsets. A view says its order in `ordering`; a cursor that makes no sense is a 404."""

    page_size = 50
    page_size_query_param = "limit"
    max_page_size = 200

    def get_ordering(self, request: Any, queryset: Any, view: Any) -> tuple[str, ...]:
        ordering: tuple[str, ...] = view.ordering
        return ordering

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any] | None:
        try:
            return super().paginate_queryset(queryset, request, view)
        except (ValueError, ValidationError, DataError) as error:
            raise NotFound(self.invalid_cursor_message) from error


class TenantSchema(AutoSchema):
    """Tells the OpenAPI page of `?tenant=`, which every management view understands."""

    def get_override_parameters(self) -> list[Any]:
        about = "Slug of the tenant that an operator acts for. A tenant's own key needs none."
        return [OpenApiParameter("tenant", str, description=about)]


class Management(GenericAPIView[M]):
    """Base of the views under /api/v1/.

    `scopes` maps each HTTP method to the scope it needs; the view has no others. `needs_tenant` views answer
    400 to an operator who names none. The permission class sets `tenant` and `actor` before a handler runs.
    """

    scopes: ClassVar[Mapping[str, str]] = {}
    needs_tenant: ClassVar[bool] = True
    ordering: ClassVar[tuple[str, ...]] = ("-created_at",)
    pagination_class = Cursor
    parser_classes = [JSONParser]
    metadata_class = None
    schema = TenantSchema()
    tenant: Any = None
    actor: Actor

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        final = super().finalize_response(request, response, *args, **kwargs)
        final.headers.setdefault("x-request-id", request_id(request))
        return final
