"""Knows which models a caller may name; answers GET /v1/models and resolves a request's `model`."""

from typing import Any

from django.http import HttpResponse

from gateway.authentication import Caller
from gateway.database import query
from gateway.views import GatewayRequest, endpoint, json_response
from registry import services
from registry.services import Target


async def resolve(caller: Caller, model: str) -> Target:
    """What the name serves for this caller. Raises ModelNotFound, with one answer for every reason."""
    return await query(services.resolve, caller.tenant, model, caller.adapters)


@endpoint("GET")
async def list_models(request: GatewayRequest, caller: Caller) -> HttpResponse:
    targets = await query(services.visible_models, caller.tenant, caller.adapters)
    return json_response({"object": "list", "data": [_model(target, caller) for target in targets]})


@endpoint("GET")
async def retrieve_model(request: GatewayRequest, caller: Caller, model: str) -> HttpResponse:
    return json_response(_model(await resolve(caller, model), caller))


def _model(target: Target, caller: Caller) -> dict[str, Any]:
    return {
        "id": target.model,
        "object": "model",
        "created": int(target.base.created_at.timestamp()),
        "owned_by": caller.tenant.slug if target.adapter else "lorayard",
    }
