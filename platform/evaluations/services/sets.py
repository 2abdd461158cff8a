"""Takes evaluation sets in, whole or not at all, and deletes them."""

from django.db import IntegrityError, transaction
from django.db.models import ProtectedError

from audit.models import Action
from audit.services import Actor, record
from evaluations.errors import Fault, NameTaken, SetInUse, SetMalformed, TooMany
from evaluations.judge import Judge
from evaluations.lines import Line, digest, read
from evaluations.models import EvaluationSet, Item
from registry.services import check_quota
from tenants.models import Tenant

MOST_SETS = 200  # of one tenant
CHECKING = 10.0  # seconds for all patterns and schemas of a set


def create_set(tenant: Tenant, name: str, raw: bytes, *, actor: Actor) -> EvaluationSet:
    """Raises SetMalformed with every faulty line, NameTaken, TooMany, QuotaExceeded, ValidationError by the name."""
    created = EvaluationSet(tenant=tenant, name=name, uploader=str(actor), size=len(raw))
    created.clean_fields(exclude=["digest", "measure", "count"])
    lines = read(raw)
    _check_patterns(lines)
    created.digest, created.count, created.measure = digest(lines), len(lines), lines[0].measure
    with transaction.atomic():
        check_quota(tenant, evaluation_bytes=len(raw))
        if EvaluationSet.objects.for_tenant(tenant).count() >= MOST_SETS:
            raise TooMany(f"A tenant may have {MOST_SETS} evaluation sets at most; delete one first.")
        try:
            with transaction.atomic():
                created.save(force_insert=True)
        except IntegrityError as error:
            raise NameTaken(f"There is an evaluation set {name!r} already; sets never change.") from error
        Item.objects.bulk_create([_item(created, line) for line in lines], batch_size=500)
        data = {"digest": created.digest, "items": created.count, "measure": created.measure}
        record(Action.EVALUATION_SET_CREATED, tenant=tenant, actor=actor, target=str(created), data=data)
    return created


@transaction.atomic
def delete_set(unwanted: EvaluationSet, *, actor: Actor) -> None:
    """With all its evaluations and their scores. Raises SetInUse while one is under way or a rollout needs the set."""
    locked = EvaluationSet.objects.select_for_update().select_related("tenant").filter(pk=unwanted.pk).first()
    if locked is None:
        return
    target, tenant = str(locked), locked.tenant
    if locked.evaluations.pending().exists():
        raise SetInUse("An evaluation on this set is under way; cancel it first.")
    try:
        locked.delete()
    except ProtectedError as error:
        raise SetInUse("A rollout names this set.") from error
    record(Action.EVALUATION_SET_DELETED, tenant=tenant, actor=actor, target=target, data={"digest": locked.digest})


def _check_patterns(lines: list[Line]) -> None:
    with Judge(CHECKING) as judge:
        problems = [(line.number, judge.problem(line.scorer, line.expected)) for line in lines]
    if faults := [Fault(number, "expected", problem) for number, problem in problems if problem]:
        raise SetMalformed(faults)


def _item(owner: EvaluationSet, line: Line) -> Item:
    return Item(
        set=owner,
        number=line.number,
        messages=line.messages,
        scorer=line.scorer,
        expected=line.expected,
        max_tokens=line.max_tokens,
    )
