"""Knows the shape of POST /v1/feedback: a user's thumb for an answer, by the answer's id.

Told twice it counts once, and the last word holds. The answer is the same for every id that could be one, so that
nobody learns whether somebody else's exists.
"""

from typing import Annotated, Literal

from django.http import HttpResponse
from pydantic import Field, ValidationError
from pydantic_core import from_json

from gateway.authentication import Caller
from gateway.database import query
from gateway.errors import BadRequest
from gateway.schemas.refusals import named
from gateway.schemas.request import Schema
from gateway.views import GatewayRequest, endpoint, json_response
from rollouts import services


class FeedbackRequest(Schema):
    response_id: Annotated[str, Field(pattern=r"^(chatcmpl-|cmpl-|resp_)[0-9a-f]{32}$")]
    thumb: Literal["up", "down"]


@endpoint("POST")
async def feedback(request: GatewayRequest, caller: Caller) -> HttpResponse:
    asked = request.parsed(_parsed)
    await query(services.give_feedback, caller.tenant, asked.response_id, up=asked.thumb == "up")
    return json_response({"object": "feedback", "response_id": asked.response_id, "thumb": asked.thumb})


def _parsed(body: bytes) -> FeedbackRequest:
    try:
        return FeedbackRequest.model_validate(from_json(body, allow_inf_nan=False))
    except ValidationError as error:
        raise named(error.errors(include_url=False, include_context=False, include_input=False)[0]) from None
    except ValueError:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
