"""A tenant that has one of everything: a row in every table that is a tenant's. A new table gets its row here.

What is walked over (URLs, tables) is walked over a furnished tenant and a stranger with as much, so that nothing is
missing for the wrong reason.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.utils import timezone

from apikeys.models import ApiKey, Scope
from apikeys.services import issue
from audit import checkpoints, retention
from audit.models import Chain
from audit.services import SYSTEM
from evaluations.models import Evaluation, Result
from evaluations.services import create_set, request_evaluation
from jobs.models import Share
from merges.models import Merge
from merges.services import merge_into_base
from metering import budgets
from metering.models import Budget, Call, DailyUsage, Purpose
from metering.services import create_budget
from registry.intake import SigningKey, Upload
from registry.models import State, Version
from registry.services import add_signing_key, create_upload
from rollouts.models import Arm, Feedback, Look, Outcome, Rollout, Sample
from rollouts.services import Plan, create_rollout
from tenants.models import Role, Tenant
from tenants.services import add_member
from webhooks.models import Delivery, Endpoint
from webhooks.services import create_endpoint, ping

ITEM = b'{"messages": [{"role": "user", "content": "hi"}], "scorer": "exact", "expected": "hello"}'


@dataclass(frozen=True)
class Furnished:
    """Names are the same in every tenant: adapter `support` with versions 1 and 2 and alias `stable`, set `greetings`.

    Ids are its own.
    """

    tenant: Tenant
    user: User
    key: ApiKey
    version: Version
    upload: Upload
    signing_key: SigningKey
    evaluation: Evaluation
    merge: Merge
    endpoint: Endpoint
    delivery: Delivery
    rollout: Rollout
    budget: Budget

    @property
    def secrets(self) -> list[str]:
        """What no stranger may read."""
        rows = [self.tenant, self.key, self.version, self.version.adapter, self.signing_key, self.evaluation]
        rows += [self.merge, self.endpoint, self.delivery, self.rollout, self.rollout.canary, self.budget]
        told = [self.version.digest, self.upload.pk.hex, self.tenant.slug, self.tenant.name, self.user.username]
        return [str(row.pk) for row in rows if not str(row.pk).isdigit()] + told


def furnish(tenant: Tenant, push: Callable[..., Version], which: int = 0) -> Furnished:
    """`which` of the adapters that `push` knows is version 1."""
    version = push(tenant, "support", which)
    user = get_user_model().objects.create_user(f"{tenant.slug}-person", is_staff=True)
    add_member(tenant, user, Role.EDITOR, actor=SYSTEM)
    key, _ = issue(tenant, name=f"key of {tenant.slug}", scopes=[Scope.INFERENCE], actor=SYSTEM)
    greetings = create_set(tenant, "greetings", ITEM, actor=SYSTEM)
    evaluation = request_evaluation(tenant, greetings, "support", actor=SYSTEM)
    Result.objects.create(evaluation=evaluation, item=greetings.items.get(), value=1.0, answer=tenant.slug)
    upload = create_upload(tenant, filename="a.zip", purpose="adapter", bytes=3, actor=SYSTEM)
    upload.parts.create(size=3, sha256="0" * 64)
    endpoint, _ = create_endpoint(tenant, f"https://{tenant.slug}.example.com/hook", ["*"], actor=SYSTEM)
    budget = create_budget(tenant, period="day", tokens=10, actor=SYSTEM)
    _used(tenant, key)
    return Furnished(
        tenant=tenant,
        user=user,
        key=key,
        version=version,
        upload=upload,
        signing_key=add_signing_key(tenant, "ci", base64.b64encode(bytes(32)).decode(), actor=SYSTEM),
        evaluation=evaluation,
        merge=merge_into_base(version, actor=SYSTEM),
        endpoint=endpoint,
        delivery=ping(endpoint),
        rollout=_rolled_out(version),
        budget=budget,
    )


def sealed(*tenants: Tenant) -> None:
    """What of the audit log is older goes into segments, up to a signed head."""
    checkpoints.take()
    for chain in Chain.objects.filter(pk__in=[tenant.pk for tenant in tenants]):
        retention.seal(chain, timezone.now() + timedelta(days=1))


def _used(tenant: Tenant, key: ApiKey) -> None:
    Call.objects.create(tenant=tenant, key=key.pk, request_id="req_1", base="tiny", adapter="support")
    budgets.rooms(tenant.pk, key.pk)
    Share.objects.create(tenant=tenant, line="evaluations", start=0, end=1)
    DailyUsage.objects.create(tenant=tenant, day=timezone.now().date(), key=key.pk, purpose=Purpose.LIVE)


def _rolled_out(version: Version) -> Rollout:
    """A rollout to version 2, with all that was observed of it."""
    adapter, now = version.adapter, timezone.now()
    digest = f"sha256:{adapter.tenant.pk.hex}{2:032x}"
    adapter.versions.create(number=2, state=State.READY, digest=digest, uploader="test")
    rollout = create_rollout(adapter, Plan(version=2), actor=SYSTEM)
    Sample.objects.create(rollout=rollout, step=0, arm=Arm.CANARY, at=now, unit=7, outcome=Outcome.OK)
    Look.objects.create(rollout=rollout, step=0, number=1, kind="inconclusive", at=now)
    Feedback.objects.create(tenant=adapter.tenant, response="resp_1", up=True, at=now)
    return rollout
