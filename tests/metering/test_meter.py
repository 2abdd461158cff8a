"""What a web process does with its calls when something is in the way."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection

from gateway.meter import Meter
from metering import ledger
from metering.models import Call, Outcome
from tenants.models import Tenant
from tests.processes import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


def ended(meter: Meter, call: Call) -> None:
    meter.begin(call)
    meter.end(call, Outcome.FINISHED)


def kept() -> list[tuple[str, str]]:
    try:
        return list(Call.objects.order_by("request_id").values_list("request_id", "outcome"))
    finally:
        connection.close()  # that of this thread


async def test_a_call_that_can_never_be_kept_stands_before_no_other(acme: Tenant, call_of: Callable[..., Call]) -> None:
    meter = Meter()
    ended(meter, call_of(acme, request_id="a"))
    ended(meter, call_of(Tenant(pk=uuid4()), request_id="b"))
    ended(meter, call_of(acme, request_id="c"))
    await meter.close()
    assert await asyncio.to_thread(kept) == [("a", "finished"), ("c", "finished")]


async def test_calls_wait_while_the_database_is_away_and_a_stop_cuts_off_what_is_open(
    acme: Tenant, call_of: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, away = ledger.write, [OperationalError("away")] * 2

    def written(calls: Any) -> None:
        if away:
            raise away.pop()
        write(calls)

    monkeypatch.setattr(ledger, "write", written)
    monkeypatch.setattr("gateway.meter.AWAY", 0.01)
    meter = Meter()
    meter.begin(call_of(acme, request_id="open", outcome=Outcome.OPEN))
    ended(meter, call_of(acme, request_id="over"))
    await asyncio.to_thread(wait_for, kept, 30, "a call's being kept")
    await meter.close()
    assert await asyncio.to_thread(kept) == [("open", "cancelled"), ("over", "finished")]


async def test_a_long_call_is_noted_while_others_never_stop_ending(
    acme: Tenant, call_of: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would pass for lost, and its tokens with it."""
    monkeypatch.setattr(ledger, "NOTE_EVERY", timedelta(0))
    monkeypatch.setattr("gateway.meter.PAUSE", 0.0)
    meter, write = Meter(), ledger.write

    def written(calls: Any) -> None:
        write(calls)
        if len(meter._ended) < 50:  # the next one ends before this one is gone
            loop.call_soon_threadsafe(ended, meter, call_of(acme, outcome=Outcome.OPEN))

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(ledger, "write", written)
    meter.begin(call_of(acme, request_id="long", outcome=Outcome.OPEN))
    ended(meter, call_of(acme, outcome=Outcome.OPEN))
    await asyncio.to_thread(wait_for, lambda: ("long", "open") in kept(), 30, "the long call's being noted")
    await meter.close()
