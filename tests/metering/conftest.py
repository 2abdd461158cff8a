"""Calls of two tenants, made as the gateway makes them."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from metering.models import Call, Outcome
from tenants.models import Tenant

KEY = UUID(int=1)


@pytest.fixture
def call_of() -> Callable[..., Call]:
    """call_of(acme, prompt=3): a call that nothing is written of yet; finished unless told otherwise."""

    def make(tenant: Tenant, **fields: Any) -> Call:
        told = {"key": KEY, "request_id": "req_1", "base": "tiny", "adapter": "support", "version": 1}
        return Call(tenant=tenant, **{**told, "prompt": 10, "completion": 5, "outcome": Outcome.FINISHED, **fields})

    return make
