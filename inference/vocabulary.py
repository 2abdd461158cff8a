"""Knows tokens as bytes and by name, and where a chat template ends a turn; never streams, requests or the engine."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Self

from jinja2 import TemplateError
from tokenizers import Tokenizer

BYTE = re.compile(r"<0x([0-9A-F]{2})>")
PROBE = "lorayard probe"


class Vocabulary:
    """A tokenizer's tokens. special: the text of those that are marks rather than text, by id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = str(getattr(tokenizer, "decoder", ""))
        self._alphabet = _byte_alphabet() if "ByteLevel" in decoder else {}
        self._falls_back = "ByteFallback" in decoder
        added = tokenizer.get_added_tokens_decoder()
        self.special = {token: mark.content for token, mark in added.items() if mark.special}

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, tokenizer: Tokenizer) -> Self:
        return cls(tokenizer)

    def last(self, tokens: Sequence[int], *, skip_special: bool) -> int | None:
        """The last of them that is text; None where there is none."""
        return next((token for token in reversed(tokens) if self.shows(token, skip_special=skip_special)), None)

    def shows(self, token: int, *, skip_special: bool) -> bool:
        return not (skip_special and token in self.special) and self._tokenizer.id_to_token(token) is not None

    @lru_cache(maxsize=1 << 16)  # noqa: B019 - there is one vocabulary a model
    def raw(self, token: int, before: int | None) -> bytes:
        """The bytes that a token adds to a text that ends with the token `before`; None: it is the text's first.

        They may be part of a character.
        """
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if self._alphabet:
            known = all(character in self._alphabet for character in piece)
            return bytes(self._alphabet[character] for character in piece) if known else piece.encode()
        byte = BYTE.fullmatch(piece) if self._falls_back else None
        if byte and (before is not None or byte[1] >= "80"):
            return bytes.fromhex(byte[1])
        return self._added(token, [] if before is None else [before]).encode()

    def names(self, tokens: Iterable[int], before: int | None) -> dict[int, str]:
        """What each of a place's tokens is called: its text, `bytes:\\x..` for what is none; no two alike."""
        owners: dict[str, int] = {}
        for token in sorted(set(tokens)):
            owners.setdefault(self._name(token, before), token)
        named = {token: name for name, token in owners.items()}
        return {token: named.get(token, f"token_id:{token}") for token in tokens}

    def _name(self, token: int, before: int | None) -> str:
        if token in self.special:
            return self.special[token]
        if self._tokenizer.id_to_token(token) is None:
            return f"token_id:{token}"
        raw = self.raw(token, before)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _added(self, token: int, before: list[int]) -> str:
        """By what the text grows. Of a decoder that goes back on what it said: the token's text alone."""
        text, whole = self._decode(before), self._decode([*before, token])
        return whole.removeprefix(text) if whole.startswith(text) else self._decode([token])

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token with which the chat template ends what an assistant says; None where it ends it in plain text.

    tokenizer: Transformers' own.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    try:
        rest = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(PROBE)[2].lstrip()
    except (TemplateError, ValueError):
        return None
    fast = tokenizer.backend_tokenizer
    first = next(iter(fast.encode(rest, add_special_tokens=False).ids), None)
    mark = fast.get_added_tokens_decoder().get(first)
    return first if mark is not None and rest.startswith(mark.content) else None


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
