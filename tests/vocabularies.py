"""Small tokenizers of every kind that base models bring, built as their `tokenizer.json` says it."""

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = ["Paris", "is", "The", "true", "»", "a", "b", "c", "city", ".", "é", "日"]
MARKS = ["<|end|>", "<|start|>"]


def byte_level() -> Tokenizer:
    """GPT-2, Llama-3, Qwen: one token a byte, in GPT-2's stand-in characters, and a few words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate([*alphabet, "Ġa", "Ã©"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _marked(tokenizer)


def byte_fallback(strip: bool = True) -> Tokenizer:
    """Llama-2, Mistral, Phi-3; without `strip` Gemma: a space is ▁, and what is no piece is bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    vocabulary = {piece: n for n, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend("▁")] if strip else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    after = [decoders.Strip(" ", 1, 0)] if strip else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return _marked(tokenizer)


def metaspace() -> Tokenizer:
    """Unigram of SentencePiece, as XGLM has it."""
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((word, -3.0) for word in WORDS), *((f"▁{word}", -1.0) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _marked(tokenizer)


def word_piece() -> Tokenizer:
    pieces = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS), "'", "s", "##s", "n't", "##'", "?", "!"]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _marked(tokenizer)


def suffixed() -> Tokenizer:
    """The first GPT: a word ends with </w>."""
    pieces = [*WORDS, *(f"{word}</w>" for word in WORDS)]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    return _marked(tokenizer)


def ids(tokenizer: Tokenizer, *pieces: str) -> list[int]:
    found = [tokenizer.token_to_id(piece) for piece in pieces]
    assert None not in found
    return [token for token in found if token is not None]


def _marked(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(MARKS)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-fallback": byte_fallback,
    "byte-fallback without strip": lambda: byte_fallback(strip=False),
    "metaspace": metaspace,
    "word-piece": word_piece,
    "suffixed": suffixed,
}
