"""Which version a request gets while a rollout is under way, and that every word about it holds at once."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from audit.services import SYSTEM
from registry.errors import ModelNotFound
from registry.models import Adapter, Alias, Version
from registry.models import State as VersionState
from registry.services import move_alias
from rollouts import services
from rollouts.assignment import Units
from rollouts.models import Arm, Rollout, State
from rollouts.routing import Route, route
from rollouts.services import PlannedStep
from tenants.models import Tenant
from tests.rollouts.conftest import make_adapter_of

Begin = Callable[..., Rollout]


def served(tenant: Tenant, user: str = "u", model: str = "support", **options: Any) -> Route:
    return route(tenant, model, (), Units("key", user), **options)


def versions(tenant: Tenant, count: int = 200, **options: Any) -> Counter[int | None]:
    return Counter(served(tenant, str(user), **options).target.version for user in range(count))


def test_without_a_rollout_the_alias_serves(acme: Tenant, adapter: Adapter) -> None:
    assert served(acme).target.version == 1
    assert served(acme).trial is None


def test_a_share_of_the_users_meets_the_canary_and_each_always(acme: Tenant, begin: Begin) -> None:
    begin(steps=[PlannedStep(weight=2500)])
    assert 25 < versions(acme)[2] < 75
    assert versions(acme) == versions(acme)


def test_a_request_takes_the_name_of_the_alias_whichever_version_serves(acme: Tenant, begin: Begin) -> None:
    begin()
    names = {served(acme, str(user)).target.model for user in range(40)}
    assert names == {"acme/support"}


def test_pinned_versions_and_other_aliases_take_no_part(acme: Tenant, adapter: Adapter, begin: Begin) -> None:
    move_alias(adapter, "champion", 1, expected=None, actor=SYSTEM)
    begin(steps=[PlannedStep(weight=10_000)])
    assert served(acme).target.version == 2
    digest = adapter.versions.get(number=1).digest
    for name in ("support@v1", f"support@{digest}", "support@champion"):
        assert (served(acme, model=name).target.version, served(acme, model=name).trial) == (1, None)


@pytest.mark.parametrize("state", [State.VALIDATING, State.PRELOADING])
def test_before_the_first_step_nobody_meets_it(acme: Tenant, begin: Begin, state: str) -> None:
    begin(at=state, steps=[PlannedStep(weight=10_000)])
    assert versions(acme) == {1: 200}


def test_an_abort_holds_from_the_next_request_on(acme: Tenant, begin: Begin) -> None:
    rollout = begin(steps=[PlannedStep(weight=10_000)])
    assert versions(acme, 5) == {2: 5}
    services.abort(rollout, actor=SYSTEM)
    assert versions(acme, 5) == {1: 5}


def test_paused_it_serves_those_it_served(acme: Tenant, begin: Begin) -> None:
    rollout = begin()
    before = versions(acme)
    services.pause(rollout, actor=SYSTEM)
    assert versions(acme) == before


def test_whoever_moves_the_alias_wins_at_once(acme: Tenant, adapter: Adapter, begin: Begin) -> None:
    begin(steps=[PlannedStep(weight=10_000)])
    Alias.objects.filter(adapter=adapter).update(version=adapter.versions.get(number=2))
    Version.objects.create(adapter=adapter, number=3, state=VersionState.READY, digest="sha256:" + "3" * 64)
    move_alias(adapter, "stable", 3, expected=2, actor=SYSTEM)
    assert versions(acme, 5) == {3: 5}


def test_a_tester_chooses_and_is_not_counted(acme: Tenant, begin: Begin) -> None:
    begin(steps=[PlannedStep(weight=100)])
    for arm, version in ((Arm.CANARY, 2), (Arm.STABLE, 1)):
        found = served(acme, wanted=arm)
        assert found.target.version == version
        assert found.trial is not None
        assert not found.trial.counted


def test_a_shadow_step_copies_and_serves_nothing(acme: Tenant, begin: Begin) -> None:
    begin(steps=[PlannedStep(weight=5000, shadow=True), PlannedStep(weight=5000)])
    routes = [served(acme, str(user)) for user in range(200)]
    assert {found.target.version for found in routes} == {1}
    copied = [found for found in routes if found.trial and found.trial.shadow]
    assert 60 < len(copied) < 140
    assert {found.trial.shadow.version for found in copied if found.trial and found.trial.shadow} == {2}


def test_a_canary_has_stable_to_fall_back_on(acme: Tenant, begin: Begin) -> None:
    begin(steps=[PlannedStep(weight=10_000)])
    trial = served(acme).trial
    assert trial is not None
    assert trial.fallback is not None
    assert trial.fallback.version == 1


def test_a_strangers_rollout_changes_nothing_here(acme: Tenant, globex: Tenant, begin: Begin) -> None:
    begin(steps=[PlannedStep(weight=10_000)])
    with pytest.raises(ModelNotFound):
        served(globex)
    make_adapter_of(globex)
    assert versions(globex, 5) == {1: 5}
    assert served(globex).trial is None
