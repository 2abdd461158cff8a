"""Knows a tokenizer's control tokens, and how a text that merely holds their names is kept from becoming them.

Names that stand in what people say are told from those that the template wrote by what they begin with: there the
first character becomes one that nobody used, until the template is through. What is then still the name of a control
token is the template's own, and is put under a name that nobody can guess, the only one that the tokenizer's twin knows
it by. So the twin reads template and contents in one go, as the tokenizer would, and no content is a control token.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from tokenizers import AddedToken, Tokenizer

Turn = dict[str, str]

SHAPE = re.compile(r"[^\w\s].*\w.*[^\w\s]", re.DOTALL)
"""Of tokens that mark something, such as <think>, and not of words that somebody added to a vocabulary."""

CLASSIC = frozenset({"<s>", "</s>"})
PRIVATE = (*range(0xE000, 0xF900), *range(0x100000, 0x10FFFE))  # Unicode's private use: they mean nothing
UNGUESSABLE = 8  # of the 65,536 characters of plane 15


class ControlText(Exception):
    """A text that holds the name of a control token, and that can't be read as anything else."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True)
class Marks:
    """special: of the tokens that no answer shows. every: of those that it shows as well, such as <think>, which an
    assistant's turn may hold: it is what the model said."""

    special: re.Pattern[str]
    every: re.Pattern[str]
    normalised: re.Pattern[str]  # as the tokenizer's normaliser writes those that are met after it
    normalise: Any
    names: Mapping[str, str]  # the twin's, by the token's own
    twin: Tokenizer | None  # none could be made: such texts are refused

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: str) -> Self:
        pieces = tokenizer.get_vocab(with_added_tokens=False)
        added = tokenizer.get_added_tokens_decoder()
        controls = {id: mark for id, mark in added.items() if _controls(mark, template, pieces)}
        normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer is not None else None
        met_later = [mark.content for mark in controls.values() if mark.normalized] if normalise else []
        names = {mark.content: _unguessable() for mark in controls.values()}
        return cls(
            _any(mark.content for mark in controls.values() if mark.special),
            _any(names),
            _any(normalise(text) for text in met_later) if normalise else _any(()),
            normalise if met_later else None,
            names,
            _twin(tokenizer, {id: names[mark.content] for id, mark in controls.items()}),
        )

    def found(self, turns: Sequence[Turn]) -> str | None:
        """The name of a control token that the turns hold where it is none."""
        for turn in turns:
            if met := self._of(turn).search(_said(turn)):
                return met[0]
        texts = [text for turn in turns for text in _texts(turn)]
        joined = (("".join(texts), self.special), ("".join(map(str.strip, texts)), self.special))
        later = [(self.normalise(joined[0][0]), self.normalised)] if self.normalise is not None else []
        return next((met[0] for text, pattern in (*joined, *later) if (met := pattern.search(text))), None)

    def hidden(self, turns: Sequence[Turn]) -> tuple[list[Turn], dict[int, str]]:
        """The turns with the first characters of such names replaced, and what gives them back (`str.translate`).

        Raises ControlText where they hold every character that could stand in.
        """
        used = set("".join(text for turn in turns for text in _texts(turn)))
        unused = (chr(code) for code in PRIVATE if chr(code) not in used)
        firsts = sorted({name[0] for name in self.names})
        stand_ins = dict(zip(firsts, unused, strict=False))
        if len(stand_ins) < len(firsts):
            raise ControlText(firsts[-1])
        hidden = [{**turn, **{key: self._hide(turn, key, stand_ins) for key in _keys(turn)}} for turn in turns]
        if self._across(hidden):
            table = str.maketrans(stand_ins)
            hidden = [{**turn, **{key: turn[key].translate(table) for key in _keys(turn)}} for turn in turns]
        return hidden, {ord(stand_in): first for first, stand_in in stand_ins.items()}

    def renamed(self, text: str) -> str:
        """A rendered prompt for the twin."""
        return self.every.sub(lambda met: self.names[met[0]], text)

    def _of(self, turn: Turn) -> re.Pattern[str]:
        return self.special if turn["role"] == "assistant" else self.every

    def _hide(self, turn: Turn, key: str, stand_ins: Mapping[str, str]) -> str:
        pattern, text = self._of(turn), turn[key]
        while pattern.search(text):
            text = pattern.sub(lambda met: stand_ins[met[0][0]] + met[0][1:], text)
        return text

    def _across(self, turns: Sequence[Turn]) -> bool:
        """Whether contents make a name together."""
        texts = [text for turn in turns for text in _texts(turn)]
        return any(self.special.search("".join(joined)) for joined in (texts, map(str.strip, texts)))


def _keys(turn: Turn) -> list[str]:
    return [key for key in turn if key != "role"]


def _texts(turn: Turn) -> list[str]:
    return [turn[key] for key in _keys(turn)]


def _said(turn: Turn) -> str:
    return "\0".join(_texts(turn))


def _controls(mark: AddedToken, template: str, pieces: Mapping[str, int]) -> bool:
    """Special tokens do; of others what looks like a mark, if it is no piece of text or the template writes it."""
    if not mark.content.strip():
        return False
    own = mark.content not in pieces or mark.content in template or mark.content in CLASSIC
    return mark.special or (bool(SHAPE.fullmatch(mark.content)) and own)


def _any(names: Iterable[str]) -> re.Pattern[str]:
    """The longest of these names. Each character of a text is looked at once, however many names begin alike."""
    tree: dict[str, Any] = {}
    for name in {*names} - {""}:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_written(tree) or r"(?!)")


def _written(tree: Mapping[str, Any]) -> str:
    """As a pattern. "" marks where a name ends."""
    branches = [re.escape(character) + _written(node) for character, node in tree.items() if character]
    joined = branches[0] if len(branches) == 1 and "" not in tree else f"(?:{'|'.join(branches)})" if branches else ""
    return f"{joined}?" if branches and "" in tree else joined


def _unguessable() -> str:
    return "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(UNGUESSABLE))


def _twin(tokenizer: Tokenizer, names: Mapping[int, str]) -> Tokenizer | None:
    """The same tokenizer, which knows these ids by these names alone; None where it can't be made."""
    written = json.loads(tokenizer.to_str())
    olds = {mark["content"]: names[mark["id"]] for mark in written["added_tokens"] if mark["id"] in names}
    for mark in written["added_tokens"]:
        if mark["id"] in names:
            mark["content"] = names[mark["id"]]
    model = written["model"]
    model["vocab"] = _renamed(model["vocab"], olds)
    if model.get("unk_token") in olds:
        model["unk_token"] = olds[model["unk_token"]]
    written.update(post_processor=None, truncation=None, padding=None)
    try:
        twin = Tokenizer.from_str(json.dumps(written))
    except Exception:  # whatever the library says: it is its own format, of any version
        return None
    return twin if all(twin.token_to_id(name) == id for id, name in names.items()) else None


def _renamed(vocabulary: Any, olds: Mapping[str, str]) -> Any:
    """Of a model: a mapping, or (Unigram) pairs of piece and score."""
    if isinstance(vocabulary, dict):
        return {olds.get(piece, piece): id for piece, id in vocabulary.items()}
    return [[olds.get(piece, piece), score] for piece, score in vocabulary]
