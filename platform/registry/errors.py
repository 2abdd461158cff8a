"""Knows what the registry refuses, and why.

PlatformError
├── NotFound
│   ├── ModelNotFound        unknown, another tenant's, unready or not allowed: one answer
│   └── AdapterNotFound
├── Conflict
│   ├── NameTaken
│   ├── AliasMoved           the alias is not where the caller thought
│   ├── AliasNeeded          a version can't be archived while an alias names it
│   ├── AdapterInUse
│   ├── VersionNotReady
│   ├── BaseModelChanged     a name that adapters were validated against now means other shapes
│   └── NoBaseModel          nothing is served yet, so nothing can be adapted
├── UploadTooLarge           413
└── UploadMalformed          400
"""

from tenants.errors import Conflict, NotFound, PlatformError, TooLarge


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


class AliasNeeded(Conflict):
    code = "version_in_use"


class AdapterInUse(Conflict):
    code = "adapter_in_use"


class VersionNotReady(Conflict):
    code = "version_not_ready"
    param = "version"


class BaseModelChanged(Conflict):
    code = "base_model_changed"


class NoBaseModel(Conflict):
    code = "no_base_model"


class UploadTooLarge(TooLarge):
    code = "upload_too_large"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The upload is larger than the {limit:,} bytes that are allowed.")


class UploadMalformed(PlatformError):
    code = "upload_malformed"
    param = "files"
