"""What a request for a chat's next turn may say."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field

from gateway.errors import BadRequest
from gateway.schemas.request import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    Many,
    One,
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


class ChatMessage(Schema):
    """One turn. Its content may be text or parts of text; images, sound and calls of tools are not served."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[str, One] | Annotated[list[ChatPart], Field(min_length=1), Many],
        Discriminator(kind),
    ]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        return text_of(self.content)


class ChatRequest(Request):
    """forced_answer: an extra of ours; the answer is this text, so that `logprobs` tell how likely it was."""

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Request.neutral,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    content: ClassVar[str] = "messages"

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
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
        if self.max_tokens and self.max_completion_tokens:
            raise BadRequest("Give 'max_completion_tokens' or 'max_tokens', not both.", param="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
        if self.forced_answer is not None and (not self.logprobs or self.limit or self.stop or self.choices > 1):
            conflict = "'forced_answer' needs 'logprobs', and goes with neither a limit, 'stop' nor 'n'."
            raise BadRequest(conflict, param="forced_answer")
        check_stream_options(self.stream, self.stream_options)
