"""Registers the keys that a tenant signs versions with, and decides whether a version is signed as it must be."""

from django.db import IntegrityError, transaction
from django.utils import timezone

from adapters import signatures
from adapters.errors import Rejected
from audit.models import Action
from audit.services import Actor, record
from registry.errors import KeyKnown, KeyMalformed, NoSigningKey, SignatureMalformed, SignatureRequired
from registry.intake import SigningKey
from tenants.models import Tenant
from tenants.services import change_tenant


def add_signing_key(tenant: Tenant, name: str, public_key: str, *, actor: Actor) -> SigningKey:
    """Raises KeyMalformed for what is no ed25519 public key (base64 or PEM), KeyKnown for one that is there."""
    try:
        key = SigningKey(tenant=tenant, name=name, public_key=signatures.public_key(public_key))
    except ValueError as error:
        raise KeyMalformed(f"This is no ed25519 public key: {error}.") from error
    key.clean_fields()
    with transaction.atomic():
        try:
            with transaction.atomic():
                key.save(force_insert=True)
        except IntegrityError as error:
            raise KeyKnown("This key is registered already, or was and is revoked.") from error
        data = {"name": name, "public_key": key.public_key}
        record(Action.SIGNING_KEY_ADDED, tenant=tenant, actor=actor, target=str(key), data=data)
    return key


@transaction.atomic
def revoke_signing_key(key: SigningKey, *, actor: Actor) -> SigningKey:
    """From now on nothing becomes ready by its signature; what is ready stays. Again changes nothing."""
    if SigningKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=timezone.now()) == 1:
        record(Action.SIGNING_KEY_REVOKED, tenant=key.tenant, actor=actor, target=str(key), data={"name": key.name})
    return SigningKey.objects.get(pk=key.pk)


def require_signatures(tenant: Tenant, required: bool, *, actor: Actor) -> Tenant:
    """Let only signed versions become ready. Raises NoSigningKey when there is nobody to sign."""
    if required and not SigningKey.objects.for_tenant(tenant).live().exists():
        raise NoSigningKey("Register a key first; without one nothing could ever become ready.")
    return change_tenant(tenant, actor=actor, requires_signature=required)


def check_given(tenant: Tenant, signature: str) -> None:
    """What can be said before the digest is known. Raises SignatureMalformed, SignatureRequired."""
    if not signature:
        if Tenant.objects.filter(pk=tenant.pk, requires_signature=True).exists():
            raise SignatureRequired(f"{tenant} takes only signed versions; send a signature.")
        return
    try:
        signatures.decoded(signature, signatures.SIGNATURE_BYTES)
    except ValueError as error:
        raise SignatureMalformed(f"A signature is the base64 of 64 bytes: {error}.") from error


def signer(tenant: Tenant, signature: str, digest: str) -> SigningKey | None:
    """The live key that signed this digest; None where nobody did and nobody had to. Raises Rejected."""
    if not signature:
        if tenant.requires_signature:
            message = "This tenant takes only signed versions; upload it with a signature."
            raise Rejected.because("signature-missing", message, expected="a signature")
        return None
    keys = list(SigningKey.objects.for_tenant(tenant))
    key = next((key for key in keys if signatures.verify(key.public_key, signature, digest)), None)
    if key is None:
        message = f"The signature isn't one of {digest} by any of the tenant's keys; sign that digest and upload again."
        raise Rejected.because("signature-invalid", message, expected=f"a signature of {digest}")
    if key.revoked_at is not None:
        message = f"The signature was made by the key {key.name!r}, which is revoked; sign with one that is not."
        raise Rejected.because("signature-revoked", message, expected="a key that is not revoked", found=key.name)
    return key
