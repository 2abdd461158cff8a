"""manage.py push_adapter acme support ./my-adapter --wait"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.files import File
from django.core.management.base import BaseCommand, CommandError, CommandParser

from adapters.files import DROPPED
from audit.services import SYSTEM
from registry.models import State, Version
from registry.services import ensure_adapter, upload_version, validate_version
from tenants.errors import PlatformError
from tenants.models import Tenant


class Command(BaseCommand):
    help = "Upload a folder that PEFT wrote, or a .zip or .tar.gz of it, as an adapter's next version."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="slug")
        parser.add_argument("adapter", help="name; made if it does not exist")
        parser.add_argument("path", type=Path, help="folder or archive")
        parser.add_argument("--wait", action="store_true", help="validate here and now instead of in a worker")

    def handle(self, *args: Any, tenant: str, adapter: str, path: Path, wait: bool, **options: Any) -> None:
        try:
            version = _push(Tenant.objects.get(slug=tenant), adapter, path, enqueue=not wait)
        except Tenant.DoesNotExist as error:
            raise CommandError(f"There is no tenant {tenant!r}.") from error
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        except (OSError, PlatformError) as error:
            raise CommandError(str(error)) from error
        if wait:
            validate_version(version.pk)
            version.refresh_from_db()
        self.stdout.write(f"{version} {version.state}")
        if version.state == State.REJECTED:
            raise CommandError("\n".join(f"[{finding['rule']}] {finding['message']}" for finding in version.findings))


def _push(tenant: Tenant, name: str, path: Path, *, enqueue: bool) -> Version:
    paths = [file for file in sorted(path.iterdir()) if file.name not in DROPPED] if path.is_dir() else [path]
    with ExitStack() as stack:
        files = [File(stack.enter_context(file.open("rb")), name=file.name) for file in paths]
        return upload_version(ensure_adapter(tenant, name, actor=SYSTEM), files, actor=SYSTEM, enqueue=enqueue)
