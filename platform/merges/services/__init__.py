"""The verbs of merging. Each change is one transaction with its audit event, and takes the merge's row lock."""

from merges.services.keeping import discard_merge, expire_merges, record_download, tidy_merges
from merges.services.requests import Source, cancel_merge, merge_into_base, merge_versions, waiting
from merges.services.running import resume_merges, run_merge

__all__ = [
    "Source",
    "cancel_merge",
    "discard_merge",
    "expire_merges",
    "merge_into_base",
    "merge_versions",
    "record_download",
    "resume_merges",
    "run_merge",
    "tidy_merges",
    "waiting",
]
