"""Stops a start whose settings would leave the management API open, or turn its 401 into a 403."""

from typing import Any

from django.conf import settings
from django.core.checks import Error, register

KEYS = "apikeys.authentication.KeyAuthentication"
SCOPES = "apikeys.permissions.HasScope"
ERRORS = "tenants.errors.exception_handler"


@register()
def settings_guard_the_api(app_configs: Any, **kwargs: Any) -> list[Error]:
    rest: dict[str, Any] = getattr(settings, "REST_FRAMEWORK", {})
    conditions = {
        "apikeys.E001": (
            rest.get("DEFAULT_AUTHENTICATION_CLASSES", [])[:1] == [KEYS],
            f"REST_FRAMEWORK's DEFAULT_AUTHENTICATION_CLASSES must begin with {KEYS}.",
        ),
        "apikeys.E002": (
            SCOPES in rest.get("DEFAULT_PERMISSION_CLASSES", []),
            f"REST_FRAMEWORK's DEFAULT_PERMISSION_CLASSES must hold {SCOPES}.",
        ),
        "apikeys.E003": (
            rest.get("EXCEPTION_HANDLER") == ERRORS,
            f"REST_FRAMEWORK's EXCEPTION_HANDLER must be {ERRORS}.",
        ),
        "apikeys.E004": (
            len(settings.LORAYARD.pepper) >= 32,
            "LORAYARD_PEPPER must have 32 characters or more.",
        ),
    }
    return [Error(message, id=code) for code, (holds, message) in conditions.items() if not holds]
