"""Knows how a stream of tokens becomes text, and where a stop string cuts it; never requests or the engine."""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence

from tokenizers import Tokenizer

from inference.vocabulary import Vocabulary


class TextStream:
    """The text of one answer to a prompt, piece by piece. Text that may yet turn into a stop string is held back.

    Bytes that are no UTF-8 are shown as U+FFFD. A stop string ends the text after min_tokens tokens at the earliest;
    one that holds a special token's text is met whether or not such tokens are shown.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        prompt: Sequence[int] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self.stopped = False  # a stop string was met; nothing follows
        self._vocabulary = Vocabulary.of(tokenizer)
        self._skip_special = skip_special
        self.before = self._vocabulary.last(prompt, skip_special=skip_special)
        """The token after which the next one's text stands."""
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._stops = [Stop(string, self._holds_mark(string)) for string in stop if string]
        self._include_stop = include_stop
        self._free = min_tokens  # so many tokens yet stop nothing
        self._held = Held()

    def push(self, token: int, *, shown: bool = True) -> str:
        """The text that became certain with this token; "" while a character is incomplete. shown: as text."""
        self._free -= 1
        if not (shown and self._shows(token)):
            return self._release(self._vocabulary.special.get(token, ""), shown=False)
        text = self._decoder.decode(self.raw(token))
        self.before = token
        return self._release(text)

    def raw(self, token: int, *, shown: bool = True) -> bytes:
        """The bytes that this token, came it next, would add to the text."""
        return self._vocabulary.raw(token, self.before) if shown and self._shows(token) else b""

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._release(self._decoder.decode(b"", final=True))
        return text + self._held.take(len(self._held.text))

    def _shows(self, token: int) -> bool:
        return self._vocabulary.shows(token, skip_special=self._skip_special)

    def _holds_mark(self, string: str) -> bool:
        return any(mark in string for mark in self._vocabulary.special.values())

    def _release(self, text: str, *, shown: bool = True) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return text if shown else ""
        held = self._held
        held.add(text, shown=shown)
        if self._free >= 0:
            held.safe = len(held.text)
        elif met := min((found for stop in self._stops for found in stop.met(held)), default=None):
            self.stopped = True
            certain = held.take(met[0]) + (met[1] if self._include_stop else "")
            held.clear()
            return certain
        return held.take(min(stop.begun(held) for stop in self._stops))


class Held:
    """Text that is not told yet: all of it, and which of its characters are shown. Before `safe` no stop may end."""

    def __init__(self) -> None:
        self.text = ""
        self.safe = 0
        self._shown: list[bool] = []

    def add(self, text: str, *, shown: bool) -> None:
        self.text += text
        self._shown += [shown] * len(text)

    def places(self, *, hidden: bool) -> list[int]:
        """Where the characters are that are shown, or all of them."""
        return [place for place, shown in enumerate(self._shown) if shown or hidden]

    def take(self, count: int) -> str:
        """What is shown of the first `count` characters, which are held no longer."""
        taken = "".join(character for character, shown in zip(self.text, self._shown[:count], strict=False) if shown)
        self.text, self._shown = self.text[count:], self._shown[count:]
        self.safe = max(0, self.safe - count)
        return taken

    def clear(self) -> None:
        self.take(len(self.text))


class Stop:
    """A stop string. marked: it is looked for in what is hidden too."""

    def __init__(self, string: str, marked: bool) -> None:
        self._string = string
        self._marked = marked

    def met(self, held: Held) -> Iterator[tuple[int, str]]:
        """Where it begins, if it is there, and the string."""
        places, text = self._seen(held)
        at = text.find(self._string)
        while at >= 0:
            if places[at + len(self._string) - 1] >= held.safe:
                yield places[at], self._string
                return
            at = text.find(self._string, at + 1)

    def begun(self, held: Held) -> int:
        """Where the end begins that the string may yet grow out of."""
        places, text = self._seen(held)
        sizes = range(min(len(text), len(self._string) - 1), 0, -1)
        return next((places[-size] for size in sizes if text.endswith(self._string[:size])), len(held.text))

    def _seen(self, held: Held) -> tuple[list[int], str]:
        places = held.places(hidden=self._marked)
        return places, "".join(held.text[place] for place in places)
