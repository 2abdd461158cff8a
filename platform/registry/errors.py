"""Knows what the registry refuses, and why.

PlatformError
├── NotFound
│   ├── ModelNotFound        unknown, another tenant's, unready or not allowed: one answer
│   └── AdapterNotFound
├── Conflict
│   ├── NameTaken
│   ├── AliasMoved           the alias is not where the caller thought
│   ├── NothingToRollBack    the alias was never moved to where it is
│   ├── VersionNeeded        a version can't go while an alias, a rollout… needs it: 409, with `needed_by`
│   ├── RollbackOpen         nor while a rollback of an alias would lead to it
│   ├── PinsSpent            as many versions are pinned as the engine can keep
│   ├── AdapterInUse
│   ├── VersionNotReady
│   ├── BaseModelChanged     a name that adapters were validated against now means other shapes
│   ├── KeyKnown             a signing key is registered already
│   ├── NoSigningKey         nobody could sign what must be signed
│   └── NoBaseModel          nothing is served yet, so nothing can be adapted
├── KeyMalformed             400
├── EngineUnavailable        503
├── UploadTooLarge           413
├── UploadNotFound           404
└── UploadMalformed          400
    ├── UploadClosed         completed, cancelled or expired
    ├── UploadOverfull       the part is more than was announced
    ├── PartsMissing         the parts don't add up
    ├── ChecksumMismatch
    ├── SignatureMalformed
    └── SignatureRequired
"""

from tenants.errors import Body, Conflict, NotFound, PlatformError, TooLarge, Unavailable


class ModelNotFound(NotFound):
    code = "model_not_found"
    param = "model"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model[:200]!r} does not exist, or you do not have access to it.")


class AdapterNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such adapter here.")


class NameTaken(Conflict):
    code = "name_taken"
    param = "name"


class AliasMoved(Conflict):
    code = "alias_moved"
    param = "expected"

    def __init__(self, name: str, current: int | None) -> None:
        where = f"points to v{current}" if current else "does not exist"
        super().__init__(f"The alias {name!r} {where}; read it again before you move it.")
        self.current = current


class NothingToRollBack(Conflict):
    code = "nothing_to_roll_back"


class VersionNeeded(Conflict):
    """`needers`: of each its kind, its name and its id."""

    code = "version_in_use"

    def __init__(self, number: int, needers: list[dict[str, str]]) -> None:
        named = " and ".join(f"the {needer['kind']} {needer['name']}" for needer in needers)
        super().__init__(f"v{number} is needed by {named}; move or end what needs it first.")
        self.needers = needers

    @property
    def body(self) -> Body:
        return {"error": {**super().body["error"], "needed_by": self.needers}}


class RollbackOpen(Conflict):
    code = "rollback_window"


class PinsSpent(Conflict):
    code = "pins_spent"


class AdapterInUse(Conflict):
    code = "adapter_in_use"


class VersionNotReady(Conflict):
    code = "version_not_ready"
    param = "version"


class BaseModelChanged(Conflict):
    code = "base_model_changed"


class NoBaseModel(Conflict):
    code = "no_base_model"


class EngineUnavailable(Unavailable):
    code = "engine_unavailable"


class UploadTooLarge(TooLarge):
    code = "upload_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The upload is larger than the {limit:,} bytes that are allowed.")


class UploadMalformed(PlatformError):
    code = "upload_malformed"
    param = "files"


class UploadNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such upload or file here.")


class UploadClosed(UploadMalformed):
    code = "upload_closed"
    param = "upload_id"

    def __init__(self, state: str) -> None:
        super().__init__(
            f"The upload is {state}; start a new one." if state != "pending" else "The upload has expired."
        )


class UploadOverfull(UploadMalformed):
    code = "upload_overfull"
    param = "data"

    def __init__(self, announced: int, room: int, size: int) -> None:
        super().__init__(f"Of the {announced:,} bytes announced {room:,} are left; this part has {size:,}.")


class PartsMissing(UploadMalformed):
    code = "parts_missing"
    param = "part_ids"


class ChecksumMismatch(UploadMalformed):
    code = "checksum_mismatch"

    def __init__(self, name: str, expected: str, found: str) -> None:
        super().__init__(
            f"The file's {name} is {found}, not {expected[:128]}; a part is damaged or out of order.", param=name
        )


class KeyMalformed(PlatformError):
    code = "key_malformed"
    param = "public_key"


class KeyKnown(Conflict):
    code = "key_known"
    param = "public_key"


class NoSigningKey(Conflict):
    code = "no_signing_key"
    param = "required"


class SignatureMalformed(UploadMalformed):
    code = "signature_malformed"
    param = "signature"


class SignatureRequired(UploadMalformed):
    code = "signature_required"
    param = "signature"
