"""A start whose settings would leave the management API open is stopped; its OpenAPI page has no gaps."""

from typing import Any

import pytest
from django.core.management import call_command

from apikeys.checks import settings_guard_the_api


def test_the_settings_guard_the_api() -> None:
    assert settings_guard_the_api(None) == []


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [
        ("DEFAULT_AUTHENTICATION_CLASSES", ["rest_framework.authentication.SessionAuthentication"], "apikeys.E001"),
        ("DEFAULT_PERMISSION_CLASSES", ["rest_framework.permissions.AllowAny"], "apikeys.E002"),
        ("EXCEPTION_HANDLER", "rest_framework.views.exception_handler", "apikeys.E003"),
    ],
)
def test_a_setting_that_would_open_it_is_an_error_with_an_id(
    settings: Any, setting: str, value: Any, code: str
) -> None:
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, setting: value}
    assert [error.id for error in settings_guard_the_api(None)] == [code]


def test_a_short_pepper_is_an_error(settings: Any) -> None:
    settings.LORAYARD = settings.LORAYARD.model_copy(update={"pepper": "short"})
    assert [error.id for error in settings_guard_the_api(None)] == ["apikeys.E004"]


def test_the_openapi_page_describes_every_endpoint_without_a_warning(tmp_path: Any) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yml"))
    text = (tmp_path / "schema.yml").read_text()
    for path in (
        "/api/v1/tenants",
        "/api/v1/keys/{id}/rotate",
        "/api/v1/adapters/{name}/aliases/{alias}",
        "/api/v1/audit",
    ):
        assert path in text


def test_no_migration_is_missing(db: None) -> None:
    call_command("makemigrations", "tenants", "apikeys", "audit", "registry", "evaluations", "--check", "--dry-run")
