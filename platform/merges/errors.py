"""Knows what is refused of merges before a worker sees them, and why.

PlatformError
├── MergeMalformed       400  sources, method and options that don't go together
├── MergeUnsigned        400  the tenant takes only signed versions, and the platform signs for nobody
├── NotFound
│   ├── MergeNotFound
│   └── FileNotThere          not of this merge, or expired
├── Conflict
│   ├── MergeSettled          too late to cancel, or nothing there to delete
│   └── TooManyMerges         as many wait or run as a tenant may have
└── MergesTooLarge       413  the tenant keeps as many bytes of merged models as it may
"""

from registry.errors import SignatureRequired
from tenants.errors import Conflict, NotFound, PlatformError, TooLarge


class MergeMalformed(PlatformError):
    code = "merge_malformed"


class MergeUnsigned(SignatureRequired):
    param = "kind"

    def __init__(self) -> None:
        super().__init__(
            "This tenant takes only versions that it has signed, and the platform can't sign in its name. Combine the "
            "adapters with PEFT's add_weighted_adapter, sign what comes out, and upload it."
        )


class MergeNotFound(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such merge here.")


class FileNotThere(NotFound):
    def __init__(self) -> None:
        super().__init__("There is no such file here; a merged model is kept for a limited time.")


class MergeSettled(Conflict):
    code = "merge_settled"


class TooManyMerges(Conflict):
    code = "too_many_merges"

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} merges are under way already; wait for one, or cancel one.")


class MergesTooLarge(TooLarge):
    code = "merges_too_large"

    def __init__(self, most: int) -> None:
        super().__init__(f"The merged models that you keep have {most:,} bytes, all that is allowed; delete some.")
