"""Knows how a stream of tokens becomes text, and where a stop string cuts it; never requests or the engine."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer, piece by piece. Text that may yet turn into a stop string is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False  # a stop string was met; nothing follows
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._undecoded: list[int] = []
        self._held = ""

    def push(self, token: int) -> str:
        """The text that became certain with this token; "" while a character is incomplete."""
        self._undecoded.append(token)
        text = self._stream.step(self._tokenizer, token)
        if text is None:
            return ""
        self._undecoded.clear()
        return self._release(text)

    def flush(self) -> str:
        """What was held back, at the end of the answer. Bytes that never became a character are shown as U+FFFD."""
        rest = self._tokenizer.decode(self._undecoded, skip_special_tokens=True) if self._undecoded else ""
        text = self._release(rest) + self._held
        self._held = ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        cut = min((at for string in self._stop if (at := self._held.find(string)) >= 0), default=None)
        if cut is not None:
            self.stopped = True
            certain, self._held = self._held[:cut], ""
        else:
            kept = max((_overlap(self._held, string) for string in self._stop), default=0)
            certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain


class Vocabulary:
    """Single tokens as text and as bytes, for log-probabilities."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        alphabet = _byte_alphabet()
        byte_level = "ByteLevel" in str(getattr(tokenizer, "decoder", ""))
        self._alphabet = alphabet if byte_level else {}

    def raw(self, token: int) -> bytes:
        """A byte-level token's own bytes, which may be part of a character; otherwise its text in UTF-8."""
        piece = self._tokenizer.id_to_token(token) or ""
        if self._alphabet and all(character in self._alphabet for character in piece):
            return bytes(self._alphabet[character] for character in piece)
        if piece.startswith("<0x") and len(piece) == len("<0x00>"):
            return bytes([int(piece[3:5], 16)])
        return self.text(token).encode()

    def text(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of `text` begin `string`."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
