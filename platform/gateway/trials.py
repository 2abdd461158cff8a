"""Knows how a request meets a rollout: whom it counts to, which arm serves it, and what a tester may choose.

An assignment sticks to the user that the request names, else to the conversation, which is known by its user's first
words: a client sends them again with every turn, and within a WebSocket they are remembered. System prompts may change
from turn to turn (a date in them) and count for nothing. So one conversation never meets both versions, in whichever
process, connection or year it goes on.
"""

import hashlib
from collections.abc import Sequence

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
OPENING = 4096  # characters that tell conversations apart


async def route(exchange: Exchange, caller: Caller, asked: Request, turns: Sequence[Turn] = ()) -> Route:
    """What serves this request. turns: of the whole conversation. Raises ModelNotFound, Forbidden and BadRequest."""
    units = Units(str(caller.key), asked.user, asked.conversation or opening(turns))
    return await query(routing.route, caller.tenant, asked.model, caller.adapters, units, _wanted(exchange, caller))


def opening(turns: Sequence[Turn]) -> str:
    """A hash of the user's first turn, whatever the application says around it; "" where there is none."""
    first = next((turn["content"] for turn in turns if turn["role"] == "user"), None)
    return "" if first is None else hashlib.sha256(first[:OPENING].encode()).hexdigest()


def _wanted(exchange: Exchange, caller: Caller) -> Arm | None:
    if not exchange.arm:
        return None
    if not caller.tester:
        raise Forbidden(f"'{HEADER}' needs the scope 'rollouts:test': use a key that has it.", param=HEADER)
    if exchange.arm not in Arm.values:
        raise BadRequest(f"'{HEADER}' may be {' or '.join(Arm.values)}.", param=HEADER)
    return Arm(exchange.arm)
