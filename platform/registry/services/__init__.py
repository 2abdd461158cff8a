"""The registry's verbs. Each is one transaction with its audit event; each that touches versions or aliases holds the
adapter's row lock, so that they happen one after the other."""

from registry.services.adapters import create_adapter, delete_adapter, ensure_adapter, register_base_model
from registry.services.aliases import delete_alias, move_alias
from registry.services.naming import Target, resolve, visible_models
from registry.services.quotas import limits, usage
from registry.services.signing import add_signing_key, require_signatures, revoke_signing_key
from registry.services.uploads import (
    add_part,
    cancel_upload,
    complete_upload,
    create_upload,
    drop_file,
    expire_uploads,
    receive_file,
)
from registry.services.validation import revalidate_stale, validate_version
from registry.services.versions import archive_version, upload_version

__all__ = [
    "Target",
    "add_part",
    "add_signing_key",
    "archive_version",
    "cancel_upload",
    "complete_upload",
    "create_adapter",
    "create_upload",
    "delete_adapter",
    "delete_alias",
    "drop_file",
    "ensure_adapter",
    "expire_uploads",
    "limits",
    "move_alias",
    "receive_file",
    "register_base_model",
    "require_signatures",
    "resolve",
    "revalidate_stale",
    "revoke_signing_key",
    "upload_version",
    "usage",
    "validate_version",
    "visible_models",
]
