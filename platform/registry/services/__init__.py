"""The registry's verbs. Each is one transaction with its audit event; each that touches versions or aliases holds the
adapter's row lock, so that they happen one after the other."""

from registry.services.adapters import create_adapter, delete_adapter, ensure_adapter, register_base_model
from registry.services.aliases import delete_alias, move_alias
from registry.services.naming import Target, resolve, visible_models
from registry.services.validation import revalidate_stale, validate_version
from registry.services.versions import archive_version, upload_version

__all__ = [
    "Target",
    "archive_version",
    "create_adapter",
    "delete_adapter",
    "delete_alias",
    "ensure_adapter",
    "move_alias",
    "register_base_model",
    "resolve",
    "revalidate_stale",
    "upload_version",
    "validate_version",
    "visible_models",
]
