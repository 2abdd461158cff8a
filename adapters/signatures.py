"""Knows how a version is signed: ed25519 (RFC 8032) over its digest; never whose keys they are or who must sign.

`python -m adapters.signatures key.pem folder` prints the digest of an adapter's folder and its signature.
"""

from __future__ import annotations

import base64
import binascii
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from adapters.manifest import Manifest

PURPOSE = "lorayard adapter version"
SIGNATURE_BYTES = 64
KEY_BYTES = 32


def message(digest: str) -> bytes:
    """What is signed: a purpose, so that a signature made for something else is none here, and the digest."""
    return f"{PURPOSE}\n{digest}".encode()


def sign(key: Ed25519PrivateKey, digest: str) -> str:
    return base64.b64encode(key.sign(message(digest))).decode()


def verify(public_key: str, signature: str, digest: str) -> bool:
    """Both in base64. Raises ValueError where one of them is none."""
    try:
        Ed25519PublicKey.from_public_bytes(decoded(public_key, KEY_BYTES)).verify(
            decoded(signature, SIGNATURE_BYTES), message(digest)
        )
    except InvalidSignature:
        return False
    return True


def public_key(text: str) -> str:
    """The base64 of a public key's 32 bytes, given so or as PEM. Raises ValueError."""
    if not text.lstrip().startswith("-----BEGIN"):
        return base64.b64encode(decoded(text.strip(), KEY_BYTES)).decode()
    key = load_pem_public_key(text.strip().encode())
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("not an ed25519 key")
    return base64.b64encode(key.public_bytes_raw()).decode()


def decoded(text: str, length: int) -> bytes:
    """Raises ValueError unless it is the base64 of so many bytes."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if len(raw) != length:
        raise ValueError(f"{len(raw)} bytes, not {length}")
    return raw


def main(key: str, folder: str) -> None:
    private = load_pem_private_key(Path(key).read_bytes(), None)
    if not isinstance(private, Ed25519PrivateKey):
        sys.exit(f"{key} holds no ed25519 key")
    digest = Manifest.of(Path(folder)).digest
    print(digest, sign(private, digest))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
