"""Knows how a request meets a rollout: whom it counts to, which arm serves it, and what a tester may choose.

An assignment sticks to the user that the request names, else to the conversation, which is known by its opening: a
client sends it again with every turn, and within a WebSocket it is remembered. So one conversation never meets both
versions, in whichever process, connection or year it goes on.
"""

import hashlib
from collections.abc import Sequence

from pydantic_core import to_json

from gateway.authentication import Caller
from gateway.database import query
from gateway.errors import BadRequest, Forbidden
from gateway.exchange import Exchange
from gateway.prompts import Turn
from gateway.schemas.request import Request
from rollouts import routing
from rollouts.assignment import Units
from rollouts.models import Arm
from rollouts.routing import Route

HEADER = "x-rollout-arm"
OPENING = 4096  # characters of a turn that tell conversations apart


async def route(exchange: Exchange, caller: Caller, asked: Request, turns: Sequence[Turn] = ()) -> Route:
    """What serves this request. turns: of the whole conversation. Raises ModelNotFound, Forbidden and BadRequest."""
    units = Units(str(caller.key), asked.user, asked.conversation or opening(turns))
    return await query(routing.route, caller.tenant, asked.model, caller.adapters, units, _wanted(exchange, caller))


def opening(turns: Sequence[Turn]) -> str:
    """A hash of the turns up to the user's first; "" where there is none."""
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        return ""
    said = [(turn["role"], turn["content"][:OPENING]) for turn in turns[: first + 1]]
    return hashlib.sha256(to_json(said)).hexdigest()


def _wanted(exchange: Exchange, caller: Caller) -> Arm | None:
    if not exchange.arm:
        return None
    if not caller.tester:
        raise Forbidden
    if exchange.arm not in Arm.values:
        raise BadRequest(f"'{HEADER}' may be {' or '.join(Arm.values)}.", param=HEADER)
    return Arm(exchange.arm)
