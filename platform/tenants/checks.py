"""Stops a start with a model of which nobody said whose its rows are; tells a deployment of rows that nobody guards."""

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from tenants import policies


@register()
def every_model_is_claimed(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    hint = "Give it a way to Tenant by keys that are not null, or name it in tenants.policies.SHARED."
    about = "{} is neither a tenant's nor shared, so no policy guards its rows."
    return [Error(about.format(label), hint=hint, id="tenants.E001") for label in policies.unclaimed()]


@register(Tags.database, deploy=True)
def every_table_is_guarded(app_configs: Any, databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    if settings.LORAYARD.web_role == "none":
        return [Warning("Row-level security is off: LORAYARD_WEB_ROLE is none.", id="tenants.W001")]
    if not databases:
        return []
    hint = "Run `manage.py migrate`."
    return [
        Error(f"{table} has no policy, or an old one.", hint=hint, id="tenants.E002")
        for table in policies.unprotected()
    ]
