"""What a request for a chat's next turn may say."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from gateway.errors import BadRequest
from gateway.schemas.refusals import TAG
from gateway.schemas.request import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    Many,
    One,
    RefusalPart,
    Request,
    Schema,
    StreamOptions,
    TextPart,
    Tokens,
    check_stream_options,
    kind,
    text_of,
)


class ChatPart(TextPart):
    type: Literal["text"]


class Turn(Schema):
    """What every turn may say. Images, sound and calls of tools are not served."""

    name: Annotated[str, Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None


class ChatMessage(Turn):
    """A turn of anybody but the assistant: text, or parts of text."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[str, One] | Annotated[list[ChatPart], Field(min_length=1), Many],
        Discriminator(kind),
    ]
    refusal: None = None

    @property
    def text(self) -> str:
        return text_of(self.content)


class AssistantMessage(Turn):
    """A turn that a client replays. What its SDK or its agent keeps beside the text changes no prompt."""

    role: Literal["assistant"]
    content: (
        Annotated[
            Annotated[str, One] | Annotated[list[Annotated[ChatPart | RefusalPart, Field(discriminator="type")]], Many],
            Discriminator(kind),
        ]
        | None
    ) = None
    refusal: str | None = None
    annotations: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    reasoning_details: Any = None
    thinking_blocks: Any = None
    provider_specific_fields: Any = None

    @property
    def text(self) -> str:
        return text_of(self.content) if self.content else self.refusal or ""


def _speaker(message: Any) -> str:
    assistant = isinstance(message, dict) and message.get("role") == "assistant"
    return f"{TAG}assistant" if assistant else f"{TAG}other"


Message = Annotated[
    Annotated[AssistantMessage, Tag(f"{TAG}assistant")] | Annotated[ChatMessage, Tag(f"{TAG}other")],
    Discriminator(_speaker),
]


class ChatRequest(Request):
    """forced_answer: an extra of ours; the answer is this text, so that `logprobs` tell how likely it was."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Request.neutral,
        "add_generation_prompt": (True,),
        "add_special_tokens": (False,),
        "audio": (),
        "best_of": (1,),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "include_reasoning": (True,),
        "logit_bias": ({},),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    content: ClassVar[str] = "messages"

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    stream_options: StreamOptions | None = None
    forced_answer: Annotated[str, Field(min_length=1)] | None = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def choices(self) -> int:
        return self.n or 1

    def check(self) -> None:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            both = "'max_tokens' is the older name of 'max_completion_tokens'; give one of them, or the same number."
            raise BadRequest(both, param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
        ends = self.limit or self.stop or self.stop_token_ids
        if self.forced_answer is not None and (not self.logprobs or ends or self.choices > 1):
            conflict = "'forced_answer' needs 'logprobs', and goes with neither a limit, stops nor 'n'."
            raise BadRequest(conflict, param="forced_answer")
        check_stream_options(self.stream, self.stream_options)
