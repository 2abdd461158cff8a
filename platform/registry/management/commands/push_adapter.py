"""manage.py push_adapter acme support ./my-adapter --wait"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.files import File
from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapters.errors import Finding, Rejected
from adapters.files import EXPECTED
from adapters.selection import choose, left_out
from audit.services import SYSTEM
from registry.models import State, Version
from registry.services import ensure_adapter, upload_version, validate_version
from tenants.errors import PlatformError
from tenants.models import Tenant


class Command(BaseCommand):
    help = "Upload a folder that PEFT or a trainer wrote, or a .zip or .tar.gz of it, as an adapter's next version."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument("adapter", help="name; made if it does not exist")
        parser.add_argument("path", type=Path, help="folder or archive")
        parser.add_argument("--wait", action="store_true", help="validate here and now instead of in a worker")

    def handle(self, *args: Any, tenant: str, adapter: str, path: Path, wait: bool, **options: Any) -> None:
        try:
            paths, notes = _adapter_in(path) if path.is_dir() else ([path], [])
            version = _push(Tenant.objects.get(slug=tenant), adapter, paths, enqueue=not wait)
        except Tenant.DoesNotExist as error:
            raise CommandError(f"There is no tenant {tenant!r}.") from error
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        except Rejected as refusal:
            raise CommandError(_told(map(asdict, refusal.findings))) from refusal
        except (OSError, PlatformError) as error:
            raise CommandError(str(error)) from error
        if wait:
            validate_version(version.pk)
            version.refresh_from_db()
        self.stdout.write(f"{version} {version.state}")
        if version.state == State.REJECTED:
            raise CommandError(_told(version.findings))
        if notes or version.findings:
            self.stdout.write(_told([*map(asdict, notes), *version.findings]))


def _adapter_in(folder: Path) -> tuple[list[Path], list[Finding]]:
    """The adapter's two files, wherever they lie in the folder, and a note of what else does. Raises Rejected."""
    names = [file.relative_to(folder).parts for file in sorted(folder.rglob("*")) if file.is_file()]
    home = folder.joinpath(*choose(names))
    paths = [home / name for name in EXPECTED]
    return paths, left_out("/".join(name) for name in names if folder.joinpath(*name) not in paths)


def _told(findings: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join(f"[{finding['rule']}] {finding['message']}" for finding in findings)


def _push(tenant: Tenant, name: str, paths: Sequence[Path], *, enqueue: bool) -> Version:
    with ExitStack() as stack:
        files = [File(stack.enter_context(file.open("rb")), name=file.name) for file in paths]
        return upload_version(ensure_adapter(tenant, name, actor=SYSTEM), files, actor=SYSTEM, enqueue=enqueue)
