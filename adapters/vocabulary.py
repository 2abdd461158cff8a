"""Knows when an adapter is for its base with another vocabulary, since tokens were added; never what they mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adapters.base import BaseSpec
from adapters.errors import Finding
from adapters.expected import Wanted
from adapters.header import Tensor
from adapters.names import EMBEDDING_A, ROWS, B, Key, is_pair
from adapters.peft_config import PeftConfig


def vocabularies(found: Mapping[Key, Tensor], wanted: Mapping[Key, Wanted], base: BaseSpec) -> dict[Key, int]:
    """The tensors that would fit a vocabulary of another size and do not fit the base's, and that size."""
    sizes = {}
    for key, want in wanted.items():
        tensor = found.get(key)
        if tensor is None or key.module not in (base.head, base.input_embedding) or key.part == ROWS:
            continue
        at = _vocabulary_at(key)
        if at is None or len(tensor.shape) != len(want.shape):
            continue
        if 0 not in tensor.shape and [a for a, size in enumerate(want.shape) if tensor.shape[a] != size] == [at]:
            sizes[key] = tensor.shape[at]
    return sizes


def vocabulary(base: BaseSpec, size: int, config: PeftConfig) -> Iterator[Finding]:
    """What to say of an adapter that was trained with `size` tokens (0: as the base has), or names others."""
    rows, _ = base.embeddings.get(base.input_embedding) or base.linears.get(base.head) or (base.vocab_size, 0)
    last = max((number for numbers in config.tokens.values() for number in numbers), default=-1)
    trained = size or (last + 1 if last >= rows else 0)
    if not trained:
        return
    least = "" if size else "at least "
    what = f"{least}{trained - rows} tokens were added" if trained > rows else f"it lacks {rows - trained} tokens"
    own = f" (its config names {config.base_model})" if config.base_model else ""
    message = (
        f"The adapter was trained with a vocabulary of {least}{trained} tokens, where the base model has {rows}: "
        f"{what}. Serve the base model as it was in training{own}: load it, call resize_token_embeddings({trained}), "
        "save it and the tokenizer with save_pretrained, serve that folder and upload the adapter for it."
    )
    rule = "added-tokens" if trained > rows else "other-vocabulary"
    yield Finding(rule, message, expected=f"{rows} tokens", found=f"{least}{trained} tokens")


def _vocabulary_at(key: Key) -> int | None:
    """Which of the tensor's dimensions is the vocabulary, None for none."""
    if key.part == EMBEDDING_A:
        return 1
    return 0 if key.part == B or not is_pair(key) else None
