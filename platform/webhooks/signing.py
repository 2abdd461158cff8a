"""Signs deliveries as Standard Webhooks describes (standardwebhooks.com). Knows no rows and no network.

    signature = base64(HMAC-SHA256(secret, "<webhook-id>.<webhook-timestamp>.<body>"))

A secret is HMAC-SHA256(pepper, salt): a copy of the database alone lets nobody forge a delivery.
"""

import base64
import hashlib
import hmac
from collections.abc import Iterable

from django.conf import settings

PREFIX = "whsec_"


def secret_of(salt: str) -> str:
    """What the receiver verifies with, as it is shown once to whoever made the endpoint."""
    return PREFIX + base64.b64encode(_derive(salt)).decode()


def headers(message_id: str, timestamp: int, body: bytes, salts: Iterable[str]) -> dict[str, str]:
    """`webhook-id`, `webhook-timestamp` (Unix seconds) and one `v1,` signature per salt."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.digest(_derive(salt), signed, "sha256")).decode() for salt in salts]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _derive(salt: str) -> bytes:
    return hmac.digest(settings.LORAYARD.pepper.encode(), f"webhook:{salt}".encode(), hashlib.sha256)
