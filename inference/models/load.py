"""Knows how to bring a causal language model up: Transformers builds it, our attention and linears go in."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters.base import BaseSpec, build, specify
from inference.lora.sites import Sites
from inference.models import attention, direct
from inference.models.attention import PagedCache, UnservedModel
from inference.models.fused import fuse
from inference.models.proof import ask, prove, refusing

LAYERS = frozenset({"full_attention", "sliding_attention"})
"""The kinds that the paged attention computes; of any other it would hide and show the wrong keys, silently."""

MEASURED = 2  # tokens of a pass that shows how a model's parts are called

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Model:
    """A model that runs flat batches: its cache and its LoRA sites are set per step, `logits` runs it."""

    network: PreTrainedModel
    spec: BaseSpec
    cache: PagedCache
    sites: Sites
    stops: frozenset[int]
    device: torch.device
    dtype: torch.dtype

    def logits(self, tokens: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """tokens, positions: int64 [tokens]. wanted: the rows whose logits [wanted, vocabulary] are returned."""
        output = self.network(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False, logits_to_keep=wanted
        )
        logits: Tensor = output.logits[0]
        return logits

    def current(self) -> AbstractContextManager[object]:
        """Its device as this thread's own, by which Triton, streams and graphs go, and which is CUDA's first else."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and float32 on a CPU, where narrow arithmetic is emulated or missing."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r}: expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load(source: str, device: torch.device, dtype: torch.dtype, slots: int) -> Model:
    """`source`: a folder or a hub id. Raises UnservedModel for one that isn't served as Transformers computes it."""
    skeleton = build(source)
    spec = specify(skeleton)
    network: PreTrainedModel = type(skeleton).from_pretrained(source, dtype=dtype, attn_implementation="eager")
    network.train(False).requires_grad_(False).to(device)
    try:
        _refuse_layers(network)
        with refusing("a forward pass of Transformers' own"):
            reference = ask(network, spec, device)
        with refusing("a forward pass with our attention and linears in it"):
            model = equip(network, spec, device, dtype, slots)
            prove(model, reference)
    except UnservedModel as error:
        raise UnservedModel(f"{spec.architecture} can't be served: {error}.") from error
    return model


def equip(network: PreTrainedModel, spec: BaseSpec, device: torch.device, dtype: torch.dtype, slots: int) -> Model:
    """Put our attention, linears and layers' parts into a model that Transformers has built."""
    network.train(False).requires_grad_(False).to(device)
    cache = PagedCache()
    attention.attach(network, cache)
    direct.lead(network)
    model = Model(network, spec, cache, Sites(network, slots, spec), _stops(network), device, dtype)
    with torch.inference_mode(), model.current():
        fuse(network, lambda: _measure(model))
        strange = model.sites.pack(lambda: _measure(model), MEASURED)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what joined weights have left behind counts as taken
    linears = {name: shape for name, shape in spec.linears.items() if name not in strange}
    return replace(model, spec=replace(spec, linears=linears, transposed=spec.transposed - strange))


def _refuse_layers(network: PreTrainedModel) -> None:
    strange = {*(getattr(network.config.get_text_config(), "layer_types", None) or ())} - LAYERS
    if strange:
        raise UnservedModel(
            f"it has layers of {' and '.join(sorted(strange))}, which the paged attention does not compute; it "
            f"computes {' and '.join(sorted(LAYERS))}"
        )


def _measure(model: Model) -> None:
    """One pass over some tokens, of which one is sampled; it shows every layer's cache to be ours."""
    tokens = torch.zeros(MEASURED, dtype=torch.int64, device=model.device)
    model.cache.shapes.clear()
    model.logits(tokens, torch.arange(MEASURED, device=model.device), tokens[:1])
    layers = model.network.config.get_text_config().num_hidden_layers
    if len(model.cache.shapes) != layers:
        raise UnservedModel(
            f"of its {layers} layers {len(model.cache.shapes)} keep keys and values by Transformers' attention "
            "interface, where the paged attention takes its place; the others compute something else, or by themselves"
        )


def _stops(network: PreTrainedModel) -> frozenset[int]:
    stops = getattr(network.generation_config, "eos_token_id", None)
    if stops is None:
        stops = network.config.get_text_config().eos_token_id
    return frozenset([stops] if isinstance(stops, int) else stops or ())
