"""Signs checkpoints and segments with Ed25519. The key is told by LORAYARD_AUDIT_KEY, or made once into home.

Never in the database: whoever owns that can rewrite every row, but not sign what they made of it.
"""

import base64
import contextlib
import os
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings

from audit import proof

FILE = "audit.key"


def sign(purpose: bytes, content: proof.Json) -> tuple[str, str]:
    """The signature over the content's canonical form, and the public key; both in base64."""
    key = _private_key()
    signature = key.sign(purpose + proof.canonical(content))
    return base64.b64encode(signature).decode(), _public(key)


def public_key() -> str:
    """In base64: 32 bytes, as RFC 8032 writes them."""
    return _public(_private_key())


def trusted(purpose: bytes, content: proof.Json, signature: str) -> bool:
    """Whether we signed this, with the key of today or one of LORAYARD_AUDIT_FORMER_KEYS."""
    keys = [public_key(), *settings.LORAYARD.audit_former]
    return any(proof.is_signed(purpose, content, signature, key) for key in keys)


def _private_key() -> Ed25519PrivateKey:
    told: str = settings.LORAYARD.audit_key
    return Ed25519PrivateKey.from_private_bytes(base64.b64decode(told or _kept(settings.LORAYARD.home / FILE)))


def _kept(path: Path) -> str:
    """Read from home, mode 0600; made there first. Of several processes that make one, one wins and all read it."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent)  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)
        finally:
            os.unlink(draft)
    return path.read_text()


def _public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()
