"""What the endpoints' requests share: strict types, and fields that are taken, dropped or refused by name."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, ValidationError
from pydantic_core import from_json

from gateway.errors import BadRequest
from gateway.schemas.refusals import TAG, clean, named, unsupported
from inference.client import Sampling

MAX_CHOICES = 64  # sequences that one request may start
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_TOKENS = 128
MAX_BAD_WORDS = 128
MAX_LOGPROBS = 20
HUGE = 2**31 - 1

Name = Annotated[str, Field(min_length=1, max_length=256)]
Token = Annotated[int, Field(ge=0, le=HUGE)]
Tokens = Annotated[int, Field(ge=1, le=HUGE)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Fraction = Annotated[float, Field(ge=0, le=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


def kind(value: Any) -> str:
    """Of a field that may be one or many: the tag of what it is."""
    return f"{TAG}many" if isinstance(value, list) else f"{TAG}one"


One = Tag(f"{TAG}one")
Many = Tag(f"{TAG}many")
Stop = Annotated[
    Annotated[StopString, One] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Many], Discriminator(kind)
]


class Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


# What vLLM's clients send beside what is served, and the values that ask for nothing.
VLLM: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "cache_salt": (),
    "detokenize": (True,),
    "early_stopping": (False,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1.0, 1),
    "logits_processors": ([],),
    "priority": (0,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "structural_tag": (),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


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
        **VLLM,
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
    stop_token_ids: Annotated[list[Token], Field(max_length=MAX_STOP_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=HUGE)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS)] | None = None
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
        if (request.min_tokens or 0) > (request.limit or request.default_limit):
            raise BadRequest("'min_tokens' is more than the answer may have.", param="min_tokens")
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
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=min(self.min_tokens or 0, max_tokens),
            include_stop=bool(self.include_stop_str_in_output),
            show_special=self.skip_special_tokens is False,
            repetition_penalty=self.repetition_penalty or 1.0,
            bad_words=tuple(self.bad_words or ()),
        )

    @classmethod
    def _asks(cls, name: str, value: Any) -> bool:
        """Whether the field says anything that must be looked at. Raises BadRequest for what is not served."""
        if name in cls.model_fields:
            return True
        if name in cls.harmless:
            return False
        if name not in cls.neutral:
            raise BadRequest(f"Unknown parameter: '{clean(name)}'.", param=clean(name), code="unknown_parameter")
        said = _said(value)
        if said is None or any(said == same and type(said) is type(same) for same in cls.neutral[name]):
            return False
        raise unsupported(name)


def _said(value: Any) -> Any:
    """The value without the fields of objects that are null: they say nothing."""
    if isinstance(value, dict):
        return {name: _said(inner) for name, inner in value.items() if inner is not None}
    return value


class StreamOptions(Schema):
    """continuous_usage_stats: vLLM's; with include_usage every chunk tells what was used so far."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None

    @property
    def continuous(self) -> bool:
        return bool(self.include_usage and self.continuous_usage_stats)


class TextPart(Schema):
    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Schema):
    """What an earlier answer said instead of an answer."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def text_of(content: str | list[Any]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _told(data: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is a text, cut at 512 characters."""
    return next((value[:512] for name in names if isinstance(value := data.get(name), str)), "")


def check_stream_options(stream: bool | None, options: object | None) -> None:
    if options is not None and not stream:
        raise BadRequest("'stream_options' needs 'stream' to be true.", param="stream_options")
