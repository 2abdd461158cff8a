"""Knows how prompts become token ids beside the event loop, and which are refused; knows no tokenizer's inside.

Prompts are neither kept nor logged.
"""

from collections.abc import Sequence

from django.conf import settings
from jinja2 import TemplateError

from gateway import lanes, tokens
from gateway.errors import BadRequest, ContextExceeded
from gateway.lanes import Abandoned
from gateway.marks import ControlText, Turn
from gateway.tokens import Text, TooLong
from registry.models import BaseModel

__all__ = ["Turn", "answer", "chat", "check", "context_of", "text", "warm"]


async def chat(base: BaseModel, turns: Sequence[Turn], *, param: str, room: int | None, share: str = "") -> list[int]:
    """Token ids of a chat's prompt. `room`: tokens that the answer must have. share: whose turn a long one takes.

    Raises BadRequest, ContextExceeded.
    """
    known, limit = await _known(base), context_of(base)
    texts = [value for turn in turns for value in turn.values()]

    def work(abandoned: Abandoned) -> list[int]:
        known.measure(texts, limit, abandoned)
        return _chat(known, turns, param)

    try:
        known.bound(sum(map(len, texts)), limit)
        ids = await lanes.run(work, characters=sum(map(len, texts)), share=share)
    except TooLong as error:
        raise _exceeded(base, error, param, room) from None
    check(base, ids, param=param, room=room)
    return ids


async def text(base: BaseModel, prompt: str, *, param: str, room: int | None, share: str = "") -> list[int]:
    """Token ids of a plain prompt, in which the names of control tokens are these tokens, as for vLLM.

    Raises BadRequest, ContextExceeded.
    """
    known, limit = await _known(base), context_of(base)

    def work(abandoned: Abandoned) -> list[int]:
        known.measure([prompt], limit, abandoned)
        return known.encode(prompt, special=True)

    try:
        known.bound(len(prompt), limit)
        ids = await lanes.run(work, characters=len(prompt), share=share)
    except TooLong as error:
        raise _exceeded(base, error, param, room) from None
    check(base, ids, param=param, room=room)
    return ids


async def answer(text: str, base: BaseModel, *, param: str, share: str = "") -> list[int]:
    """Token ids of what an assistant says, with nothing around them. Raises BadRequest, ContextExceeded."""
    known, limit = await _known(base), context_of(base)

    def work(abandoned: Abandoned) -> list[int]:
        known.measure([text], limit, abandoned)
        return known.encode(text, special=False) if _parsed() else known.encode_said(text)

    try:
        known.bound(len(text), limit)
        return await lanes.run(work, characters=len(text), share=share)
    except TooLong as error:
        raise _exceeded(base, error, param, None) from None
    except ControlText as error:
        raise _control(error, param) from None


def check(base: BaseModel, ids: Sequence[int], *, param: str, room: int | None) -> None:
    """Raises BadRequest for an empty prompt or an unknown token, ContextExceeded where the context can't hold it."""
    vocabulary, context = int(base.spec["vocab_size"]), context_of(base)
    if not ids:
        raise BadRequest(f"'{param}' must not be empty.", param=param)
    if len(ids) + (room or 1) > context:
        raise ContextExceeded(context, len(ids) + (room or 1), param=param, prompt=len(ids))
    if max(ids) >= vocabulary:
        raise BadRequest(f"'{param}' holds a token beyond the vocabulary of {vocabulary}.", param=param)


def context_of(base: BaseModel) -> int:
    """Tokens that a prompt and its answer may have together."""
    return int(base.spec["context_length"])


async def warm(source: str) -> None:
    """Loads a base model's tokenizer and runs its template, so that no request has to wait for either."""
    await lanes.run(lambda _: _warmed(source))


async def _known(base: BaseModel) -> Text:
    return await lanes.run(lambda _: tokens.load(base.source))


def _warmed(source: str) -> None:
    known = tokens.load(source)
    known.encode(tokens.PROBE, special=True)
    if known.tokenizer.chat_template:
        known.encode_chat([{"role": "user", "content": tokens.PROBE}])
        assert known.roles is not None  # they are found out by rendering


def _chat(known: Text, turns: Sequence[Turn], param: str) -> list[int]:
    if not known.tokenizer.chat_template:
        raise BadRequest("This model has no chat template; use /v1/completions.", param=param)
    for index, turn in enumerate(turns):
        if turn["role"] not in known.roles:
            name = f"{param}[{index}].role"
            raise BadRequest(f"This model's chat template takes no role '{turn['role']}'.", param=name)
    try:
        return known.encode(known.render(turns), special=False) if _parsed() else known.encode_chat(turns)
    except TemplateError:
        raise BadRequest("This model's chat template does not take these turns in this order.", param=param) from None
    except ControlText as error:
        raise _control(error, param) from None


def _parsed() -> bool:
    """Whether what people say may hold control tokens."""
    return bool(settings.LORAYARD.control_tokens_in_content)


def _control(error: ControlText, param: str) -> BadRequest:
    return BadRequest(f"'{param}' holds '{error.name}', which is a control token of this model.", param=param)


def _exceeded(base: BaseModel, error: TooLong, param: str, room: int | None) -> ContextExceeded:
    return ContextExceeded(context_of(base), error.tokens + (room or 1), param=param, least=True)
