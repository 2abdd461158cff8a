"""Knows how a model is proved to be served as Transformers computes it; never adapters or requests.

Before anything in it is replaced, the model answers a prompt by itself. Afterwards the same tokens go through the paged
cache as the engine sends them: two sequences in one flat batch, the prompt and its first half, each prefilled in two
chunks, with a token decoded at the end. The weights are there once, and both passes are short.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from adapters.base import BaseSpec
from inference.kernels.attention import Layout
from inference.models.attention import UnservedModel

if TYPE_CHECKING:
    from inference.models.load import Model

log = logging.getLogger(__name__)

TOLERANCES: Final = {torch.float32: 5e-3, torch.float16: 5e-2, torch.bfloat16: 1.5e-1}
"""How far the logits may lie apart (root of the mean square) as a part of their own standard deviation. Rounding makes
them differ by 1e-6 in float32; a mixture may send a token to another expert, where two are as good. What is computed
wrongly differs by tenths, if only in one token."""

SHORT: Final = 32  # tokens of a prompt
BEYOND: Final = 16  # tokens behind a window's length that show that it closes
WORK: Final = 2e10  # parameters times tokens: a second or less, for which a longer prompt may be taken
NUMBERS: Final = 1 << 24  # logits that are kept
BLOCK: Final = 16


@dataclass(frozen=True)
class Reference:
    """What Transformers' own model makes of `tokens` [n]: `logits` [places, vocabulary] at rising `places`."""

    tokens: Tensor
    places: Tensor
    logits: Tensor


@contextmanager
def refusing(doing: str) -> Iterator[None]:
    """Make whatever a model's code raises the reason why it isn't served."""
    try:
        yield
    except (UnservedModel, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # another's forward may raise anything
        raise UnservedModel(f"{doing} ends in {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error


@torch.inference_mode()
def ask(network: Any, spec: BaseSpec, device: torch.device) -> Reference:
    """Have the model answer before anything in it is replaced. Raises UnservedModel where it gives no numbers."""
    tokens = _prompt(network, spec).to(device)
    kept = min(len(tokens) - 1, max(SHORT, NUMBERS // spec.vocab_size))
    places = torch.linspace(1, len(tokens) - 1, kept).round().long().to(device)
    logits: Tensor = network(input_ids=tokens[None], use_cache=False, logits_to_keep=places).logits[0]
    if len(logits) != len(places):
        raise UnservedModel("its forward pass does not give the logits of chosen tokens alone (logits_to_keep)")
    if not bool(torch.isfinite(logits).all()):
        raise UnservedModel(
            f"in {str(network.dtype).removeprefix('torch.')} its logits are not all finite numbers; load it in another "
            "dtype, and if that changes nothing its weights are damaged: fetch them again"
        )
    return Reference(tokens, places, logits)


@torch.inference_mode()
def prove(model: Model, reference: Reference) -> None:
    """Compare what the engine will compute with the reference. Raises UnservedModel where they differ."""
    blocks = -(-len(reference.tokens) // BLOCK)
    model.cache.allocate(2 * blocks, BLOCK, model.dtype, model.device)
    try:
        with model.current():
            squares = [(ours.float() - theirs.float()).square() for ours, theirs in _answers(model, reference, blocks)]
    finally:
        model.cache.release()
    apart = math.sqrt(float(torch.cat(squares).mean())) / float(reference.logits.float().std())
    most = TOLERANCES[model.dtype]
    if not apart <= most:  # NaN is no agreement
        raise UnservedModel(
            f"after {len(reference.tokens)} tokens its logits lie {apart:.2g} of their standard deviation from those "
            f"that Transformers computes, and {most:g} is the most that rounding explains"
        )
    log.info("%s answers as Transformers does, within %.1g", model.spec.architecture, apart)


def _answers(model: Model, reference: Reference, blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Step by step, the logits and what they should be."""
    lengths = (len(reference.tokens), len(reference.tokens) // 2)
    tables = [list(range(first, 2 * blocks, 2))[::-1] for first in (0, 1)]
    begins = [0, 0]
    for ends in zip(*((length // 2, length - 1, length) for length in lengths), strict=True):
        counts = [end - begin for begin, end in zip(begins, ends, strict=True)]
        model.cache.layout = Layout.of(counts, ends, tables, BLOCK, model.device)
        places = torch.cat([torch.arange(*span, device=model.device) for span in zip(begins, ends, strict=True)])
        wanted = torch.isin(places, reference.places).nonzero()[:, 0]
        logits = model.logits(reference.tokens[places], places, wanted)
        yield logits, reference.logits[torch.searchsorted(reference.places, places[wanted])]
        begins = list(ends)


def _prompt(network: Any, spec: BaseSpec) -> Tensor:
    """Tokens of the whole vocabulary but those that mean something to the model; more than a window if that is cheap.

    Always the same.
    """
    window = max(_numbers(network.config, ("sliding_window", "window_size", "local_attention")), default=0)
    affordable = int(WORK / sum(parameter.numel() for parameter in network.parameters()))
    length = window + BEYOND if SHORT < window + BEYOND <= affordable else SHORT
    special = set(_numbers(network.config, ("_token_id", "_token_index")))
    plain = torch.tensor([token for token in range(spec.vocab_size) if token not in special])
    drawn = torch.randint(len(plain), (min(length, spec.context_length),), generator=torch.Generator().manual_seed(0))
    return plain[drawn]


def _numbers(config: Any, ends: tuple[str, ...]) -> Iterator[int]:
    """The whole numbers of a config and of its text's, by how their fields' names end."""
    for name, value in (*config.to_dict().items(), *config.get_text_config().to_dict().items()):
        if name.endswith(ends) and isinstance(value, int) and not isinstance(value, bool):
            yield value
