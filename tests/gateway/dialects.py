"""How chats are written down for the architectures that are served: their marks, and templates like theirs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gateway.tokens import Text
from tests.vocabularies import byte_fallback, byte_level


@dataclass(frozen=True)
class Dialect:
    template: str
    special: Sequence[str]
    shown: Sequence[str] = ()  # further tokens, which an answer shows
    pieces: bool = False  # of SentencePiece's kind
    options: dict[str, Any] = field(default_factory=dict)  # of its added tokens

    def text(self) -> Text:
        make: Any = PreTrainedTokenizerFast
        tokenizer = make(tokenizer_object=self._tokenizer(), eos_token=self.special[0])
        tokenizer.chat_template = self.template
        return Text(tokenizer)

    def _tokenizer(self) -> Tokenizer:
        tokenizer = byte_fallback(**self.options) if self.pieces else byte_level()
        tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in self.special])
        tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in self.shown])
        return tokenizer


def metaspace_first() -> Tokenizer:
    """Mistral v0.3: a space is put before the text's beginning alone, and not behind each control token."""
    tokenizer = byte_fallback()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


@dataclass(frozen=True)
class MistralDialect(Dialect):
    def _tokenizer(self) -> Tokenizer:
        tokenizer = metaspace_first()
        tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in self.special])
        return tokenizer


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{%- for m in messages %}{%- set said = m.content %}"
    "{%- if m.role == 'assistant' and '</think>' in said %}{%- set said = said.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}{{- '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)
DIALECTS = {
    "chatml": Dialect(CHATML, ["<|im_end|>", "<|im_start|>", "<|endoftext|>"], ["<tool_call>", "  "]),
    "qwen3": Dialect(THINKING, ["<|im_end|>", "<|im_start|>"], ["<think>", "</think>", "<tool_call>"]),
    "llama-3": Dialect(
        "{% for m in messages %}{{ ('<|begin_of_text|>' if loop.first else '') + '<|start_header_id|>' + m['role']"
        " + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
    ),
    "llama-2": Dialect(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'].strip() + ' [/INST]' }}"
        "{% elif m['role'] == 'system' %}{{ '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' }}"
        "{% else %}{{ ' ' + m['content'].strip() + ' </s>' }}{% endif %}{% endfor %}",
        ["</s>", "<s>"],
        pieces=True,
    ),
    "mistral": MistralDialect(
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + '</s>' }}"
        "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% endfor %}",
        ["</s>", "<s>", "[INST]", "[/INST]"],
    ),
    "gemma": Dialect(
        "{{ '<bos>' }}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
        " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}",
        ["<end_of_turn>", "<start_of_turn>", "<bos>"],
        ["\n\n", "▁▁"],
        pieces=True,
        options={"strip": False},
    ),
    "phi-3": Dialect(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' }}",
        ["<|endoftext|>", "<|end|>", "<|user|>", "<|system|>", "<|assistant|>"],
        ["</s>"],
        pieces=True,
    ),
    "zephyr": Dialect(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '</s>\n' }}{% endfor %}"
        "{{ '<|assistant|>\n' }}",
        ["</s>", "<s>"],
        pieces=True,
    ),
}
