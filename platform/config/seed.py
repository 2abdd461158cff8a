"""What a platform on one machine starts with: an operator, two demo tenants, their keys and adapters, once each.

Everything goes through the services that the API uses, so the audit log has it, and a worker validates every adapter.
Plaintexts are kept in `<home>/credentials.json`, mode 0600, and nowhere else.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.files import File

from adapters.files import DROPPED
from apikeys import services as apikeys
from apikeys.models import Scope
from audit.services import SYSTEM
from config import demo
from config.env import Env
from registry.models import PENDING, BaseModel, State, Version
from registry.services import ensure_adapter, register_base_model, upload_version
from tenants.models import Tenant
from tenants.services import create_tenant

OPERATOR = "admin"
TENANTS = {"acme": "Acme", "globex": "Globex"}
VALIDATION_PATIENCE = 120.0  # seconds
TENANT_SCOPES = [scope for scope in Scope if scope is not Scope.PLATFORM]


class SeedFailed(Exception):
    """The platform cannot be given its first contents. Its text is one line."""


def run(env: Env, say: Callable[[str], object]) -> None:
    """Safe to repeat: what is there is left alone. Needs a worker. Raises SeedFailed, or AdapterError for the model."""
    credentials = accounts(env)
    _write(credentials_path(env), credentials)
    say(f"Describing the base model {env.base_model}")
    register_base_model(env.base_model, demo.base_name(env))
    uploads = demo.uploads(env)
    for number, upload in enumerate(uploads, 1):
        version = _uploaded(upload)
        if version.state in PENDING:
            say(f"Validating {version} ({number} of {len(uploads)})")
            _settled(version)
    for slug, tenant in credentials["tenants"].items():
        tenant["adapters"] = [
            f"{slug}/{name}" for name in dict.fromkeys(u.adapter for u in uploads if u.tenant == slug)
        ]
    _write(credentials_path(env), credentials)
    (env.home / "seeded").write_text(_fingerprint(env))


def is_done(env: Env) -> bool:
    """Whether `run` would find nothing to do. Much cheaper: it does not load the base model's description."""
    seeded = env.home / "seeded"
    done = seeded.exists() and seeded.read_text() == _fingerprint(env) and credentials_path(env).exists()
    return done and BaseModel.objects.filter(is_default=True, source=env.base_model).exists()


def _fingerprint(env: Env) -> str:
    """Of everything that `run` makes its contents from."""
    files = [Path(env.base_model) / "config.json", *([demo.INDEX] if demo.is_served(env) else [])]
    parts = [env.base_model.encode(), env.url.encode(), *(file.read_bytes() for file in files if file.exists())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def accounts(env: Env) -> dict[str, Any]:
    """The operator, the tenants and for each a key that works, made where missing. What credentials.json will hold."""
    path = credentials_path(env)
    kept = json.loads(path.read_text()) if path.exists() else {}
    console = {"url": f"{env.url}/", "username": OPERATOR, "password": _operator(kept.get("console", {}))}
    tenants = {slug: _tenant(slug, kept.get("tenants", {}).get(slug, {})) for slug in TENANTS}
    return {"console": console, "tenants": tenants}


def credentials_path(env: Env) -> Path:
    return env.home / "credentials.json"


def _operator(kept: Mapping[str, str]) -> str:
    """The password on file. A new one if the account or the file is new; a person's own choice is never undone."""
    User = get_user_model()
    user = User.objects.filter(username=OPERATOR).first()
    if user is not None and "password" in kept:
        return kept["password"]
    password = secrets.token_urlsafe(15)
    if user is None:
        User.objects.create_superuser(OPERATOR, password=password)
    else:
        user.set_password(password)
        user.save(update_fields=["password"])
    return password


def _tenant(slug: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    tenant = Tenant.objects.filter(slug=slug).first() or create_tenant(slug, TENANTS[slug], actor=SYSTEM)
    key = kept.get("api_key", "")
    if not key or apikeys.verify(key) is None:
        _, key = apikeys.issue(tenant, name="demo", scopes=TENANT_SCOPES, actor=SYSTEM)
    return {"api_key": key, "adapters": kept.get("adapters", [])}


def _uploaded(upload: demo.Upload) -> Version:
    """The version that this upload became, now or at an earlier start. A rejected one is tried again."""
    tenant = Tenant.objects.get(slug=upload.tenant)
    adapter = ensure_adapter(tenant, upload.adapter, actor=SYSTEM)
    usable = adapter.versions.exclude(state=State.REJECTED).order_by("number")
    if version := usable[upload.number - 1 : upload.number].first():
        return version
    with contextlib.ExitStack() as opened:
        paths = sorted(path for path in upload.folder.iterdir() if path.name not in DROPPED)
        files = [File(opened.enter_context(path.open("rb")), name=path.name) for path in paths]
        return upload_version(adapter, files, actor=SYSTEM)


def _settled(version: Version) -> None:
    """Waits for the worker's verdict. Raises SeedFailed unless it is "ready"."""
    deadline = time.monotonic() + VALIDATION_PATIENCE
    while version.state in PENDING and time.monotonic() < deadline:
        time.sleep(0.1)
        version.refresh_from_db(fields=["state", "findings"])
    if version.state != State.READY:
        reasons = "; ".join(finding["message"] for finding in version.findings)
        raise SeedFailed(f"{version} is {version.state}: {reasons or 'no worker looked at it'}")


def _write(path: Path, credentials: Mapping[str, Any]) -> None:
    """In one piece, and never readable by others, not even for a moment."""
    descriptor, draft = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        json.dump(credentials, file, indent=2)
    os.replace(draft, path)
