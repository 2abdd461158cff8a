"""Knows what of a base model an adapter must fit: its parameters' names and shapes; never its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from adapters import mixtures
from adapters.errors import BaseModelMissing, BaseModelUnsupported
from adapters.mixtures import Experts
from adapters.renaming import Renaming, renamings

Shapes = Mapping[str, tuple[int, int]]

_QUANTISED_COPY: Final = re.compile(r"(-unsloth)?-bnb-4bit$")
"""How the copies are called that many train on in place of the model itself."""


@dataclass(frozen=True)
class BaseSpec:
    """`linears` maps every linear of named_modules() to (out, in), the output head among them; `embeddings` every
    torch.nn.Embedding to (rows, width); `vectors` every parameter of one dimension (biases, norms' weights) to its
    length. `head` is the output head's name, "" if it is no linear. `tied`: the head's weight is the input embedding's.
    `transposed`: the linears that keep their weight as [in, out] (GPT-2's Conv1D). Of a mixture, `experts` maps every
    parameter that holds its experts' matrices, those of one module together and in its order; `routers` every module
    that chooses experts by a weight of its own to that weight's shape; `fused` what target_modules may still call by
    its older name to the parameter that PEFT takes it for. `renamings`: how PEFT renames tensors of adapters for it
    that earlier Transformers named.
    """

    architecture: str
    context_length: int
    vocab_size: int
    hidden_size: int
    linears: Shapes
    embeddings: Shapes
    tied: bool
    head: str = "lm_head"
    vectors: Mapping[str, int] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    experts: Mapping[str, Experts] = field(default_factory=dict)
    routers: Shapes = field(default_factory=dict)
    fused: Mapping[str, str] = field(default_factory=dict)
    renamings: tuple[Renaming, ...] = ()

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter that an adapter may replace, to the shape that it is stored in."""
        kinds = (self.linears, self.embeddings, self.routers)
        matrices = {f"{name}.weight": shape for kind in kinds for name, shape in kind.items()}
        turned = {f"{name}.weight": self.linears[name][::-1] for name in self.transposed}
        return matrices | turned | {name: (length,) for name, length in self.vectors.items()}

    @property
    def input_embedding(self) -> str:
        """The embedding that the head may be tied to; "" where none has its shape."""
        return next((name for name, shape in self.embeddings.items() if shape == self.linears.get(self.head)), "")

    def to_json(self) -> dict[str, Any]:
        """A document of plain dicts, lists, strings and numbers."""
        return {
            "architecture": self.architecture,
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "linears": {name: list(shape) for name, shape in self.linears.items()},
            "embeddings": {name: list(shape) for name, shape in self.embeddings.items()},
            "tied": self.tied,
            "head": self.head,
            "vectors": dict(self.vectors),
            "transposed": sorted(self.transposed),
            "experts": {name: {**asdict(e), "parts": list(e.parts)} for name, e in self.experts.items()},
            "routers": {name: list(shape) for name, shape in self.routers.items()},
            "fused": dict(self.fused),
            "renamings": [[pattern, target, list(scopes)] for pattern, target, scopes in self.renamings],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | str | bytes) -> BaseSpec:
        """The inverse of `to_json`, from the document or its text."""
        plain = json.loads(document) if isinstance(document, str | bytes) else dict(document)
        for kind in ("linears", "embeddings", "routers"):
            shapes = plain.get(kind, {})
            plain[kind] = {name: (int(rows), int(columns)) for name, (rows, columns) in shapes.items()}
        experts = plain.get("experts", {})
        plain["experts"] = {name: Experts(**{**e, "parts": tuple(e["parts"])}) for name, e in experts.items()}
        plain["transposed"] = frozenset(plain.get("transposed", ()))
        plain["renamings"] = tuple(
            Renaming(pattern, target, tuple(scopes)) for pattern, target, scopes in plain.get("renamings", ())
        )
        return cls(**plain)


def routed(name: str) -> bool:
    """Whether a module is one of a mixture's experts: its rows are gathered tokens, which no batch order describes."""
    return ".experts." in f"{name}."


def same_model(one: str, other: str) -> bool:
    """Whether two names or folders may be of one base model: owners, folders, case and a quantised copy aside."""
    return _bare(one) == _bare(other)


def _bare(name: str) -> str:
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].casefold()
    return _QUANTISED_COPY.sub("", last)


def describe(source: str) -> BaseSpec:
    """Build `source` (a folder, or a hub id) on torch's meta device from its config alone, and describe it.

    Never runs code that comes with the model, never reads its weights; a folder never leads to the network. Raises
    BaseModelMissing where there is no config or a folder holds no weights, BaseModelUnsupported where Transformers
    can't build a causal language model from it.
    """
    return specify(build(source))


def specify(model: Any) -> BaseSpec:
    """Describe a causal language model that Transformers has built, on whatever device, before anything is put in."""
    text = model.config.get_text_config()
    return BaseSpec(
        architecture=type(model).__name__,
        context_length=_context_length(text),
        vocab_size=int(text.vocab_size),
        hidden_size=int(text.hidden_size),
        linears={name: _sides(module) for name, module in model.named_modules() if is_linear(module)},
        embeddings=_embeddings(model),
        tied=_tied(model, text),
        head=_head(model),
        vectors={name: len(parameter) for name, parameter in model.named_parameters() if parameter.dim() == 1},
        transposed=frozenset(name for name, module in model.named_modules() if is_transposed(module)),
        experts=mixtures.experts(model),
        routers=mixtures.routers(model),
        fused=mixtures.fused(model),
        renamings=renamings(model),
    )


def build(source: str) -> Any:
    """The model at `source` as Transformers builds it, on torch's meta device: all but its weights. Raises as above."""
    return _skeleton(source, _config(source))


def _config(source: str) -> Any:
    from transformers import AutoConfig

    folder = Path(source)
    local = folder.is_dir()
    if local:
        _require_files(folder)
    elif folder.is_absolute() or source.startswith((".", "~")):
        raise BaseModelMissing(f"There is no folder {source}; name the folder that holds the base model.")
    try:
        return AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    except OSError as error:
        raise BaseModelMissing(f"No base model at {source}: {_reason(error)}") from error
    except Exception as error:  # a config class may raise anything on values that make no sense
        raise BaseModelUnsupported(f"Transformers can't read the config of {source}: {_reason(error)}") from error


def _require_files(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BaseModelMissing(f"The folder {folder} has no config.json; name a folder that save_pretrained wrote.")
    if not any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin")):
        raise BaseModelMissing(f"The folder {folder} has a config.json but no weights (*.safetensors).")


def _skeleton(source: str, config: Any) -> Any:
    import torch

    try:
        with torch.device("meta"):
            return kind(config).from_config(config, trust_remote_code=False)
    except Exception as error:  # a constructor may raise anything on a config that makes no sense
        reason = _reason(error)
        raise BaseModelUnsupported(
            f"{source} isn't a causal language model that Transformers loads: {reason}"
        ) from error


def kind(config: Any) -> Any:
    """Transformers' auto class for a config: of causal language models, or of those that read images beside text.

    Of the latter the text's part alone is asked here.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    reads_images = type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    causal = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if reads_images and not causal else AutoModelForCausalLM


def _context_length(text: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx"):
        if isinstance(length := getattr(text, name, None), int) and length > 0:
            return min([length, *_short_contexts(text)])
    raise BaseModelUnsupported(f"The config of {type(text).__name__} states no context length.")


def _short_contexts(text: Any) -> list[int]:
    """Where LongRoPE takes other frequencies, for all positions of a batch as soon as one lies beyond.

    Below, a request's tokens depend on nothing but itself. Above, they would depend on its company, and keys cached
    before would have been turned by other frequencies. (`modeling_rope_utils.py` of Transformers. Its `dynamic` changes
    frequencies beyond `max_position_embeddings`, where the context ends anyway.)
    """
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]  # one for all layers, or by their kind
    return [int(kind["original_max_position_embeddings"]) for kind in kinds if kind.get("rope_type") == "longrope"]


def is_linear(module: Any) -> bool:
    """Whether LoRA can be added to what it makes of rows: an nn.Linear, or a Conv1D.

    One with a `forward` of its own must give a row of outputs for a row of inputs. A router that gives more is none;
    PEFT can't train it either.
    """
    from torch import nn

    plain = type(module).forward is nn.Linear.forward
    return is_transposed(module) or (isinstance(module, nn.Linear) and (plain or _maps_rows(module)))


def is_transposed(module: Any) -> bool:
    """Whether it is a linear that keeps its weight as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def is_embedding(module: Any) -> bool:
    """Whether it looks its input up in its rows, and at most scales them; not one that makes the ids itself."""
    from torch import nn

    plain = type(module).forward is nn.Embedding.forward
    return isinstance(module, nn.Embedding) and (plain or hasattr(module, "embed_scale"))


def _maps_rows(linear: Any) -> bool:
    import torch

    row = torch.empty(1, linear.in_features, device=linear.weight.device, dtype=linear.weight.dtype)
    try:
        with torch.no_grad():
            return bool(linear(row).shape == (1, linear.out_features))
    except Exception:  # another's forward may ask for anything
        return False


def _sides(linear: Any) -> tuple[int, int]:
    if is_transposed(linear):
        return linear.nf, linear.nx
    return linear.out_features, linear.in_features


def _embeddings(model: Any) -> Shapes:
    modules = model.named_modules()
    return {name: (m.num_embeddings, m.embedding_dim) for name, m in modules if is_embedding(m)}


def _head(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "")


def _tied(model: Any, text: Any) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    shared = head is not None and getattr(head, "weight", 0) is getattr(embedding, "weight", 1)
    return shared or bool(getattr(text, "tie_word_embeddings", False))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
