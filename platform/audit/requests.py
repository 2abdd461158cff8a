"""Gives every request one id, so that an audit event can be found from an answer, and one character set: UTF-8."""

import re
import secrets
from collections.abc import Mapping
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.utils.http import parse_header_parameters
from rest_framework.request import Request

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(request: Request) -> str:
    """The caller's `x-request-id` if it is a plain one, else one of our own; the same all through the request."""
    known: str | None = getattr(request, "_lorayard_id", None)
    if known is None:
        given = request.headers.get("x-request-id", "")
        known = given if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        request._lorayard_id = known  # type: ignore[attr-defined]
    return known


class Utf8Request(ASGIRequest):
    """Text is UTF-8, whatever `charset` says: some codecs are none of text, and some make half characters."""

    def _set_content_type_params(self, meta: Mapping[str, Any]) -> None:
        try:
            self.content_type, self.content_params = parse_header_parameters(meta.get("CONTENT_TYPE", ""))
        except (LookupError, ValueError):
            self.content_type, self.content_params = "", {}
