"""Knows a base model's tokenizer and chat template; turns text and turns of a chat into token ids.

The template is the base model's own, run in Transformers' sandbox; none ever comes from a request or an adapter.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from gateway.lanes import Abandoned
from gateway.marks import ControlText, Marks, Turn

PROBE = "lorayard probe"
CHUNK = 1 << 14  # characters
USUAL = 8  # characters a token, beyond which a text is looked at piece by piece first
SLACK = 0.8  # of the tokens of the pieces a text has at least: what is cut in two counts twice

_loading = threading.Lock()


class TooLong(Exception):
    """A text of at least so many tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"at least {tokens} tokens")
        self.tokens = tokens


class Nobody(Exception):
    """Nobody waits for this any more."""


@dataclass(frozen=True)
class Text:
    """A base model's tokenizer, Transformers' own. Safe to use from several threads."""

    tokenizer: Any
    marks: Marks = field(init=False)
    longest: int = field(init=False)  # characters that one token stands for

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", Marks.of(self._fast, str(self.tokenizer.chat_template or "")))
        object.__setattr__(self, "longest", max(map(len, self._fast.get_vocab()), default=1))

    @property
    def _fast(self) -> Tokenizer:
        fast: Tokenizer = self.tokenizer.backend_tokenizer
        return fast

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids. special: with what the tokenizer adds around a text, such as a beginning-of-sequence token."""
        return _encode(self._fast, text, special=special)

    def encode_said(self, text: str) -> list[int]:
        """Token ids of what an assistant says, in which no special token is one. Raises ControlText."""
        return self._read([{"role": "assistant", "content": text}], lambda turns: turns[0]["content"])

    def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids of a chat's prompt. Control tokens are the template's alone. Raises TemplateError, ControlText."""
        return self._read(turns, self.render)

    def measure(self, texts: Sequence[str], limit: int, abandoned: Abandoned) -> None:
        """Raises TooLong as soon as it is plain that texts have more than `limit` tokens, Nobody if none waits."""
        self.bound(sum(map(len, texts)), limit)
        if sum(map(len, texts)) <= USUAL * limit:
            return
        tokens = 0
        for text in texts:
            for start in range(0, len(text), CHUNK):
                if abandoned():
                    raise Nobody
                tokens += len(self.encode(text[start : start + CHUNK], special=False))
                if SLACK * tokens > limit:
                    raise TooLong(int(SLACK * tokens))

    def bound(self, characters: int, limit: int) -> None:
        """Raises TooLong where so many characters are more than `limit` tokens, whatever they are."""
        if characters > limit * self.longest:
            raise TooLong(-(-characters // self.longest))

    def _read(self, turns: Sequence[Turn], render: Callable[[Sequence[Turn]], str]) -> list[int]:
        name = self.marks.found(turns)
        if name is None:
            return self.encode(render(turns), special=False)
        if self.marks.twin is None:
            raise ControlText(name)
        hidden, back = self.marks.hidden(turns)
        return _encode(self.marks.twin, self.marks.renamed(render(hidden)).translate(back), special=False)

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


def load(source: str) -> Text:
    """The tokenizer of a folder or hub id, loaded once. Runs no code that comes with it."""
    with _loading:
        return _load(source)


@lru_cache(maxsize=8)
def _load(source: str) -> Text:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return Text(tokenizer)


def _encode(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    """Unlike `encode`, the batch lets other threads run meanwhile."""
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids)
