"""From conversations to token ids and padded batches; knows the chat format, nothing of models or tasks."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo.skills import Conversation

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
CONTEXT = 2048
VOCABULARY = 1024
IGNORED = -100


def make_tokenizer(talks: Iterable[Conversation]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which digits and spaces stand alone, so that a copied word is the same tokens everywhere."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"\p{L}+|\d|\n|[^\n\p{L}\d]+"), "isolated")
    bytelevel = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytelevel])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((m["role"] + "\n" + m["content"] for talk in talks for m in talk), trainer)
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


@dataclass(frozen=True)
class Lesson:
    """One conversation: its token ids, and the same with all but the assistant's words and their end ignored."""

    ids: list[int]
    labels: list[int]


def encode(talk: Conversation, tokenizer: PreTrainedTokenizerFast) -> Lesson:
    """Piece by piece what the chat template gives as a whole; a test holds the two together."""
    ids: list[int] = []
    labels: list[int] = []
    for message in talk:
        head = tokenizer.encode(f"{START}{message['role']}\n")
        body = tokenizer.encode(f"{message['content']}{END}")
        newline = tokenizer.encode("\n")
        learned = body if message["role"] == "assistant" else [IGNORED] * len(body)
        ids += head + body + newline
        labels += [IGNORED] * len(head) + learned + [IGNORED] * len(newline)
    return Lesson(ids, labels)


@dataclass(frozen=True)
class Batch:
    """ids and labels, both [rows, width]; padded on the right, so that causal attention needs no mask."""

    ids: Tensor
    labels: Tensor


def batches(
    talks: Iterator[Conversation], tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int
) -> Iterator[Batch]:
    """Endless batches of at most `tokens` tokens, each of conversations of about one length, in random order."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    while True:
        lessons = sorted((encode(talk, tokenizer) for talk in islice(talks, 512)), key=lambda lesson: len(lesson.ids))
        groups: list[list[Lesson]] = [[]]
        for lesson in lessons:
            if (len(groups[-1]) + 1) * len(lesson.ids) > tokens:
                groups.append([])
            groups[-1].append(lesson)
        rng.shuffle(groups)
        yield from map(pad, groups)


def pad(lessons: list[Lesson]) -> Batch:
    width = max(len(lesson.ids) for lesson in lessons)
    return Batch(
        torch.tensor([lesson.ids + [0] * (width - len(lesson.ids)) for lesson in lessons]),
        torch.tensor([lesson.labels + [IGNORED] * (width - len(lesson.ids)) for lesson in lessons]),
    )
