"""Knows the base model's tokenizer and chat template; turns text and turns of a chat into token ids.

The template is the base model's own, run in Transformers' sandbox; none ever comes from a request or an adapter.
Prompts are neither kept nor logged.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from jinja2 import TemplateError

from gateway.errors import BadRequest, ContextExceeded
from registry.models import BaseModel

T = TypeVar("T")
Turn = dict[str, str]

THREADS = 2
PROBE = "lorayard probe"

_executor = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-text")
_loading = threading.Lock()


@dataclass(frozen=True)
class Text:
    """A base model's tokenizer. Safe to use from several threads."""

    tokenizer: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids. special: with what the tokenizer adds around a text, such as a beginning-of-sequence token."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None:  # it has no state; the tokenizer around it has, which threads would tear
            return list(fast.encode(text, add_special_tokens=special).ids)
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def render(self, turns: Sequence[Turn]) -> str:
        """The prompt of a chat, ready for the assistant's next turn. Raises TemplateError."""
        return str(self.tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True))

    @cached_property
    def roles(self) -> frozenset[str]:
        """The roles whose turns the template shows. One that it drops or refuses would be silently lost."""
        before: dict[str, list[Turn]] = {
            "system": [],
            "user": [],
            "assistant": [{"role": "user", "content": "a"}],
            "tool": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        }
        after = [{"role": "user", "content": "c"}]
        return frozenset(
            role for role, turns in before.items() if self._shows([*turns, {"role": role, "content": PROBE}], after)
        )

    def _shows(self, turns: list[Turn], after: list[Turn]) -> bool:
        for chat in (turns, turns + after):
            try:
                if PROBE in self.render(chat):
                    return True
            except TemplateError:
                continue
        return False


async def chat(base: BaseModel, turns: Sequence[Turn], *, param: str, room: int | None) -> list[int]:
    """Token ids of a chat's prompt. `room`: tokens that the answer must have. Raises BadRequest, ContextExceeded."""
    ids = await _in_thread(_chat, base.source, turns, param)
    check(base, ids, param=param, room=room)
    return ids


async def text(base: BaseModel, prompt: str, *, param: str, room: int | None) -> list[int]:
    """Token ids of a plain prompt. Raises BadRequest, ContextExceeded."""
    ids = await _in_thread(_plain, base.source, prompt)
    check(base, ids, param=param, room=room)
    return ids


async def answer(text: str, base: BaseModel) -> list[int]:
    """Token ids of what an assistant says, with nothing around them."""
    return await _in_thread(lambda: load(base.source).encode(text, special=False))


def check(base: BaseModel, ids: Sequence[int], *, param: str, room: int | None) -> None:
    """Raises BadRequest for an empty prompt or an unknown token, ContextExceeded where the context can't hold it."""
    vocabulary, context = int(base.spec["vocab_size"]), context_of(base)
    if not ids:
        raise BadRequest(f"'{param}' must not be empty.", param=param)
    if max(ids) >= vocabulary:
        raise BadRequest(f"'{param}' holds a token beyond the vocabulary of {vocabulary}.", param=param)
    if len(ids) + (room or 1) > context:
        raise ContextExceeded(context, len(ids) + (room or 1), param=param, prompt=len(ids))


def context_of(base: BaseModel) -> int:
    """Tokens that a prompt and its answer may have together."""
    return int(base.spec["context_length"])


async def warm(source: str) -> None:
    """Loads a base model's tokenizer, so that no request has to wait for it."""
    await _in_thread(load, source)


def load(source: str) -> Text:
    """The tokenizer of a folder or hub id, loaded once. Runs no code that comes with it."""
    with _loading:
        return _load(source)


@lru_cache(maxsize=8)
def _load(source: str) -> Text:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        fast.no_truncation()
        fast.no_padding()
    return Text(tokenizer)


def _plain(source: str, prompt: str) -> list[int]:
    return load(source).encode(prompt, special=True)


def _chat(source: str, turns: Sequence[Turn], param: str) -> list[int]:
    known = load(source)
    if not known.tokenizer.chat_template:
        raise BadRequest("This model has no chat template; use /v1/completions.", param=param)
    for index, turn in enumerate(turns):
        if turn["role"] not in known.roles:
            name = f"{param}[{index}].role"
            raise BadRequest(f"This model's chat template takes no role '{turn['role']}'.", param=name)
    try:
        return known.encode(known.render(turns), special=False)
    except TemplateError:
        raise BadRequest("This model's chat template does not take these turns in this order.", param=param) from None


async def _in_thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_executor, function, *args)
