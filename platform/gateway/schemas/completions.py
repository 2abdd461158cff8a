"""What a request for the continuation of prompts may say."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, cast

from pydantic import Discriminator, Field, Tag

from gateway.errors import BadRequest
from gateway.schemas.refusals import TAG
from gateway.schemas.request import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    Request,
    StreamOptions,
    Token,
    Tokens,
    check_stream_options,
)


def _prompt_kind(value: Any) -> str:
    if not isinstance(value, list):
        return f"{TAG}text"
    match value[:1]:
        case [int()]:
            return f"{TAG}tokens"
        case [list()]:
            return f"{TAG}token lists"
    return f"{TAG}texts"


MAX_PROMPT = 2**20  # token ids, more than any context holds
TokenList = Annotated[list[Token], Field(min_length=1, max_length=MAX_PROMPT)]
Prompt = Annotated[
    Annotated[str, Tag(f"{TAG}text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES), Tag(f"{TAG}texts")]
    | Annotated[TokenList, Tag(f"{TAG}tokens")]
    | Annotated[list[TokenList], Field(min_length=1, max_length=MAX_CHOICES), Tag(f"{TAG}token lists")],
    Discriminator(_prompt_kind),
]


class CompletionRequest(Request):
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Request.neutral,
        "best_of": (1,),
        "add_special_tokens": (True,),
        "echo": (False,),
        "logit_bias": ({},),
        "prompt_embeds": (),
        "response_format": ({"type": "text"},),
        "suffix": ("",),
    }

    content: ClassVar[str] = "prompt"
    default_limit: ClassVar[int] = 16  # as OpenAI has it

    prompt: Prompt
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Tokens | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    stream_options: StreamOptions | None = None

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def logprob_count(self) -> int | None:
        return self.logprobs

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return cast("Sequence[str | list[int]]", self.prompt if several else [self.prompt])

    def check(self) -> None:
        if len(self.prompts) * self.choices > MAX_CHOICES:
            raise BadRequest(f"Prompts times 'n' may be {MAX_CHOICES} at most.", param="n")
        check_stream_options(self.stream, self.stream_options)
