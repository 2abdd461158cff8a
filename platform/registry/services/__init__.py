"""The registry's verbs. Each is one transaction with its audit event; each that touches versions or aliases holds the
adapter's row lock, so that they happen one after the other."""

from registry.services.adapters import create_adapter, delete_adapter, ensure_adapter, register_base_model
from registry.services.aliases import delete_alias, move_alias, previous, rollback_alias
from registry.services.comparison import compare_versions, work_out_comparison
from registry.services.naming import Target, alias_named, resolve, visible_models
from registry.services.quotas import check as check_quota
from registry.services.quotas import limits, usage
from registry.services.rejected import forget_rejected
from registry.services.residency import (
    Place,
    evict_version,
    hold_pins,
    locate,
    pin_version,
    preload_version,
    unpin_version,
)
from registry.services.retirement import (
    NotReleased,
    archive_version,
    delete_version,
    release_overdue,
    release_version,
)
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
from registry.services.uses import note_use, used
from registry.services.validation import revalidate_stale, sweep_quarantine, validate_version
from registry.services.versions import annotate_version, upload_version

__all__ = [
    "NotReleased",
    "Place",
    "Target",
    "add_part",
    "add_signing_key",
    "alias_named",
    "annotate_version",
    "archive_version",
    "cancel_upload",
    "check_quota",
    "compare_versions",
    "complete_upload",
    "create_adapter",
    "create_upload",
    "delete_adapter",
    "delete_alias",
    "delete_version",
    "drop_file",
    "ensure_adapter",
    "evict_version",
    "expire_uploads",
    "forget_rejected",
    "hold_pins",
    "limits",
    "locate",
    "move_alias",
    "note_use",
    "pin_version",
    "preload_version",
    "previous",
    "receive_file",
    "register_base_model",
    "release_overdue",
    "release_version",
    "require_signatures",
    "resolve",
    "revalidate_stale",
    "revoke_signing_key",
    "rollback_alias",
    "sweep_quarantine",
    "unpin_version",
    "upload_version",
    "usage",
    "used",
    "validate_version",
    "visible_models",
    "work_out_comparison",
]
