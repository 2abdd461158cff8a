"""What every management view is told about its caller. Knows no keys: `apikeys.permissions` finds out and attaches.

It lives here, at the bottom, because every app that serves the management API stands on `audit`.
"""

import re
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
from rest_framework.request import Request
from rest_framework.response import Response

from audit.parsing import StrictJson, check_pairs, is_storable
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

    def get_page_size(self, request: Request) -> int:
        given = request.query_params.get("limit", str(self.page_size))
        if not re.fullmatch("[0-9]{1,3}", given) or not 1 <= int(given) <= self.max_page_size:
            raise serializers.ValidationError({"limit": f"A whole number from 1 to {self.max_page_size}."})
        return int(given)

    def get_ordering(self, request: Any, queryset: Any, view: Any) -> tuple[str, ...]:
        ordering: tuple[str, ...] = view.ordering
        return ordering

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == "limit":
                parameter["schema"] |= {"minimum": 1, "maximum": self.max_page_size, "default": self.page_size}
        return parameters

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any] | None:
        try:
            return super().paginate_queryset(queryset, request, view)
        except (ValueError, ValidationError, DataError) as error:
            raise NotFound(self.invalid_cursor_message) from error


class Fault(serializers.Serializer[Any]):
    message = serializers.CharField(help_text="For a person.")
    type = serializers.CharField()
    param = serializers.CharField(allow_null=True, help_text="The field at fault, where there is one.")
    code = serializers.CharField(allow_null=True, help_text="For a program.")


class ErrorShape(serializers.Serializer[Any]):
    """OpenAI's. Some errors tell more beside these fields."""

    error = Fault()


class ManagementSchema(AutoSchema):
    """Tells the OpenAPI page what every management view has: `?tenant=`, and its errors in one shape."""

    ALWAYS = ("400", "401", "403", "404", "406", "429", "503")
    CHANGING = ("408", "409", "413", "415", "507")

    def get_override_parameters(self) -> list[Any]:
        about = "Slug of the tenant that an operator acts for. A tenant's own key needs none."
        return [OpenApiParameter("tenant", str, description=about)]

    def get_operation(self, *args: Any, **kwargs: Any) -> Any:
        operation: dict[str, Any] | None = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        of_code: Any = self._get_response_for_code
        for code in (*self.ALWAYS, *(() if self.method == "GET" else self.CHANGING)):
            operation["responses"].setdefault(code, of_code(ErrorShape, code, ["application/json"]))
        body = operation.get("requestBody")
        if body and all(content["schema"].get("required") for content in body["content"].values()):
            body["required"] = True  # a form, whose shape is spelled out
        return operation


class Management(GenericAPIView[M]):
    """Base of the views under /api/v1/.

    `scopes` maps each HTTP method to the scope it needs; the view has no others. `needs_tenant` views answer
    400 to an operator who names none. The permission class sets `tenant` and `actor` before a handler runs.
    """

    scopes: ClassVar[Mapping[str, str]] = {}
    needs_tenant: ClassVar[bool] = True
    ordering: ClassVar[tuple[str, ...]] = ("-created_at",)
    pagination_class = Cursor
    parser_classes = [StrictJson]
    metadata_class = None
    schema = ManagementSchema()
    tenant: Any = None
    actor: Actor

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Once it is known who asks: no name in the address, nor a query's text, is one that could not be kept."""
        super().initial(request, *args, **kwargs)
        check_pairs(request.query_params.lists())
        if not all(is_storable(value) for value in kwargs.values() if isinstance(value, str)):
            raise NotFound("There is no such thing here.")

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Response:
        final = super().finalize_response(request, response, *args, **kwargs)
        final.headers.setdefault("x-request-id", request_id(request))
        return final
