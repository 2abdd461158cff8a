"""Knows what a request may say: OpenAI's fields, their types and limits, and vLLM's extras; knows nothing of who asks.

Types are strict. A field that OpenAI has and that asks for nothing (`user`, `tools: []`) is dropped; one that asks for
what is not served here is refused by name, and so is one that nobody knows: nothing is silently ignored.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, ValidationError
from pydantic_core import ErrorDetails, from_json

from gateway.errors import BadRequest
from inference.client import Sampling

MAX_CHOICES = 64  # sequences that one request may start
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_LOGPROBS = 20
HUGE = 2**31 - 1

TAG = "\0"  # marks the parts of a location that name a branch of a union; no JSON name that we accept holds it

Name = Annotated[str, Field(min_length=1, max_length=256)]
Tokens = Annotated[int, Field(ge=1, le=HUGE)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Fraction = Annotated[float, Field(ge=0, le=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


def _kind(value: Any) -> str:
    return f"{TAG}many" if isinstance(value, list) else f"{TAG}one"


One = Tag(f"{TAG}one")
Many = Tag(f"{TAG}many")
Stop = Annotated[
    Annotated[StopString, One] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Many], Discriminator(_kind)
]


class Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class Request(Schema):
    """What the endpoints share. harmless: dropped whatever it says. neutral: dropped where it says one of these."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "metadata",
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_retention",
            "safety_identifier",
            "service_tier",
            "store",
            "user",
        }
    )
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "moderation": (),
        "prompt_cache_options": ({},),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
    }

    content: ClassVar[str]  # the field that holds the prompt
    default_limit: ClassVar[int] = HUGE

    model: Name
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=-1, le=HUGE)] | None = None
    min_p: Fraction | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    ignore_eos: bool | None = None
    _user: str = PrivateAttr("")
    _conversation: str = PrivateAttr("")

    @property
    def user(self) -> str:
        """Whom the client says it asks for; "" where it says nothing of use. Changes no answer, only its version."""
        return self._user

    @property
    def conversation(self) -> str:
        """Which of its conversations the client says this is."""
        return self._conversation

    @property
    def limit(self) -> int | None:
        """The most tokens to generate, where the request says so; else default_limit, or what the context holds."""
        raise NotImplementedError

    @property
    def logprob_count(self) -> int | None:
        """Rivals to tell with each token; None for no logprobs at all."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return 1

    @classmethod
    def parse(cls, body: bytes | str) -> Self:
        """Raises BadRequest, which names the parameter."""
        try:
            data = from_json(body, allow_inf_nan=False)
        except ValueError:
            raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
        if not isinstance(data, dict):
            raise BadRequest("The body must be a JSON object.", code="invalid_json")
        return cls.of(data)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Raises BadRequest, which names the parameter."""
        try:
            request = cls.model_validate({name: value for name, value in data.items() if cls._asks(name, value)})
        except ValidationError as error:
            raise named(error.errors(include_url=False, include_context=False, include_input=False)[0]) from None
        request.check()
        request._user = _told(data, "safety_identifier", "user")
        request._conversation = _told(data, "prompt_cache_key")
        return request

    def check(self) -> None:
        """What holds between fields. Raises BadRequest."""

    def sampling(self, max_tokens: int) -> Sampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            # 0 means "only the likeliest", which a float too small for any second token says without meaning "off".
            top_p=1.0 if self.top_p is None else max(self.top_p, 1e-9),
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed is None else self.seed % 2**64,
            stop=tuple(stop),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            ignore_eos=bool(self.ignore_eos),
            logprobs=self.logprob_count,
        )

    @classmethod
    def _asks(cls, name: str, value: Any) -> bool:
        """Whether the field says anything that must be looked at. Raises BadRequest for what is not served."""
        if name in cls.model_fields:
            return True
        if name in cls.harmless:
            return False
        if name not in cls.neutral:
            raise BadRequest(f"Unknown parameter: '{_clean(name)}'.", param=_clean(name), code="unknown_parameter")
        if value is None or any(value == same and type(value) is type(same) for same in cls.neutral[name]):
            return False
        raise unsupported(name)


class StreamOptions(Schema):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(Schema):
    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatPart(TextPart):
    type: Literal["text"]


def _text(content: str | list[Any]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class ChatMessage(Schema):
    """One turn. Its content may be text or parts of text; images, sound and calls of tools are not served."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        Annotated[str, One] | Annotated[list[ChatPart], Field(min_length=1), Many],
        Discriminator(_kind),
    ]
    name: Annotated[str, Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        return _text(self.content)


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
        _check_stream_options(self.stream, self.stream_options)


def _prompt_kind(value: Any) -> str:
    if not isinstance(value, list):
        return f"{TAG}text"
    match value[:1]:
        case [int()]:
            return f"{TAG}tokens"
        case [list()]:
            return f"{TAG}token lists"
    return f"{TAG}texts"


Token = Annotated[int, Field(ge=0, le=HUGE)]
TokenList = Annotated[list[Token], Field(min_length=1)]
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
        "echo": (False,),
        "logit_bias": ({},),
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
        _check_stream_options(self.stream, self.stream_options)


class InputPart(TextPart):
    """What a client says, or what an earlier answer said: an output's further fields change nothing."""

    type: Literal["input_text", "output_text"]
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputItem(Schema):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, One] | Annotated[list[InputPart], Field(min_length=1), Many],
        Discriminator(_kind),
    ]
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @property
    def text(self) -> str:
        return _text(self.content)


Input = Annotated[
    Annotated[str, One] | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), Many],
    Discriminator(_kind),
]
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
        "reasoning": ({},),
        "text": ({}, {"format": {"type": "text"}}),
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
    def items(self) -> list[InputItem]:
        return [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def check(self) -> None:
        if self.metadata is not None and len(self.metadata) > 16:
            raise BadRequest("'metadata' may hold 16 pairs at most.", param="metadata")
        _check_stream_options(self.stream, self.stream_options)


def _told(data: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is a text, cut at 512 characters."""
    return next((value[:512] for name in names if isinstance(value := data.get(name), str)), "")


def unsupported(param: str) -> BadRequest:
    return BadRequest(f"'{param}' is not supported with this value.", param=param, code="unsupported_parameter")


def _check_stream_options(stream: bool | None, options: object | None) -> None:
    if options is not None and not stream:
        raise BadRequest("'stream_options' needs 'stream' to be true.", param="stream_options")


def named(error: ErrorDetails) -> BadRequest:
    """Of pydantic's first finding: the parameter as OpenAI writes it, such as messages[0].content."""
    param = ""
    for part in error["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif not part.startswith(TAG):
            param += f".{part}" if param else part
    param = _clean(param)
    match error["type"]:
        case "missing":
            return BadRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
        case "extra_forbidden":
            return BadRequest(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    code = "invalid_type" if error["type"].endswith("_type") else "invalid_value"
    return BadRequest(f"Invalid value for '{param}': {error['msg']}.", param=param, code=code)


def _clean(param: str) -> str:
    """A name that a client made up, fit to be sent back."""
    return "".join(character for character in param[:200] if character.isprintable())
