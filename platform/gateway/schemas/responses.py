"""What a request for a response may say: its input, and the items of earlier ones."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from gateway.errors import BadRequest
from gateway.schemas.refusals import TAG
from gateway.schemas.request import (
    MAX_LOGPROBS,
    MAX_MESSAGES,
    Many,
    One,
    RefusalPart,
    Request,
    Schema,
    TextPart,
    Tokens,
    check_stream_options,
    kind,
    text_of,
)


class InputPart(TextPart):
    """What a client says, or what an earlier answer said: an output's further fields change nothing."""

    type: Literal["input_text", "output_text"]
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class RefusedPart(RefusalPart):
    annotations: list[Any] | None = None


class Item(Schema):
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class InputItem(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, One]
        | Annotated[list[Annotated[InputPart | RefusedPart, Field(discriminator="type")]], Field(min_length=1), Many],
        Discriminator(kind),
    ]
    phase: Literal["commentary", "final_answer"] | None = None

    @property
    def text(self) -> str:
        return text_of(self.content)


class ItemReference(Schema):
    """An item that the client does not send again, since it trusts that it is stored."""

    type: Literal["item_reference"]
    id: Annotated[str, Field(max_length=256)]


class ReasoningItem(Item):
    """What another model thought, as its client replays it. It changes no prompt."""

    type: Literal["reasoning"]
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None


def _item_kind(value: Any) -> str:
    match value:
        case {"type": "item_reference" | "reasoning" as name}:
            return f"{TAG}{name}"
    return f"{TAG}message"


AnyItem = Annotated[
    Annotated[InputItem, Tag(f"{TAG}message")]
    | Annotated[ItemReference, Tag(f"{TAG}item_reference")]
    | Annotated[ReasoningItem, Tag(f"{TAG}reasoning")],
    Discriminator(_item_kind),
]
Input = Annotated[
    Annotated[str, One] | Annotated[list[AnyItem], Field(min_length=1, max_length=MAX_MESSAGES), Many],
    Discriminator(kind),
]
TEXT: Mapping[str, Any] = {"format": {"type": "text"}}
VERBOSITY: Mapping[str, Any] = {"verbosity": "medium"}
Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponsesStreamOptions(Schema):
    include_obfuscation: bool | None = None


class ResponsesRequest(Request):
    harmless: ClassVar[frozenset[str]] = (Request.harmless - {"metadata"}) | {"max_tool_calls"}
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Request.neutral,
        "access_programs": (),
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "generate": (True,),
        "image": (),
        "prompt": (),
        "reasoning": ({}, {"effort": "none"}),
        "text": ({}, TEXT, VERBOSITY, {**TEXT, **VERBOSITY}),
        "truncation": ("disabled",),
    }

    content: ClassVar[str] = "input"

    input: Input
    instructions: str | None = None
    previous_response_id: Annotated[str, Field(max_length=256)] | None = None
    max_output_tokens: Tokens | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: list[Include] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = None
    stream_options: ResponsesStreamOptions | None = None

    @property
    def limit(self) -> int | None:
        return self.max_output_tokens

    @property
    def logprob_count(self) -> int | None:
        wanted = "message.output_text.logprobs" in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if wanted else None

    @property
    def items(self) -> Sequence[InputItem | ItemReference | ReasoningItem]:
        return [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def check(self) -> None:
        if self.metadata is not None and len(self.metadata) > 16:
            raise BadRequest("'metadata' may hold 16 pairs at most.", param="metadata")
        check_stream_options(self.stream, self.stream_options)
