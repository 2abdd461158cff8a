"""An adapter's files become one buffer on the device, with nothing in it that the base has already."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.errors import Rejected
from inference.lora import dora
from inference.lora.weights import ALIGNMENT, AdapterWeights, read
from inference.models.load import Model, load


@pytest.fixture(scope="module")
def tied(workshop: Any) -> tuple[Any, Model]:
    base = workshop.base("qwen2", tie_word_embeddings=True)
    return base, load(str(base.folder), torch.device("cpu"), torch.float32, 2)


def tensors(weights: AdapterWeights) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    weights.map(keep)
    return found


def opened(folder: Path, model: Model) -> AdapterWeights:
    return read(folder, model.spec, model.device, model.sites.frozen)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "use_dora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "model.norm"], "bias": "all"},
    ],
    ids=["plain", "dora", "saved"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_an_aligned_view_into_one_buffer(
    workshop: Any, tied: tuple[Any, Model], config: dict[str, Any], dtype: torch.dtype
) -> None:
    base, model = tied
    weights = opened(workshop.adapter(base, f"w{sorted(config)}{dtype}", dtype, r=3, **config), model)
    found = tensors(weights)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 1
    assert found[0].untyped_storage().nbytes() == weights.nbytes
    assert all(tensor.storage_offset() * tensor.element_size() % ALIGNMENT == 0 for tensor in found)
    assert all(tensor.is_contiguous() for tensor in found)


def test_pairs_stay_in_the_dtype_they_came_in(workshop: Any, tied: tuple[Any, Model]) -> None:
    base, model = tied
    narrow = opened(workshop.adapter(base, "narrow", torch.bfloat16, r=4, target_modules=["q_proj"]), model)
    wide = opened(workshop.adapter(base, "as-wide", r=4, target_modules=["q_proj"]), model)
    assert {tensor.dtype for tensor in tensors(narrow)} == {torch.bfloat16}
    assert narrow.nbytes * 2 == wide.nbytes


def test_what_the_base_has_already_is_dropped(workshop: Any, tied: tuple[Any, Model]) -> None:
    base, model = tied
    weights = opened(workshop.adapter(base, "targeted", r=4, target_modules=["embed_tokens"]), model)
    assert weights.corrections == {}
    assert weights.nbytes < model.sites.frozen["lm_head.weight"].nbytes


def test_a_weight_that_embedding_and_head_share_is_there_once(workshop: Any, tied: tuple[Any, Model]) -> None:
    base, model = tied
    weights = opened(workshop.with_base_weights(base, "shared", r=1, target_modules=["q_proj"]), model)
    embedding, head = weights.corrections["model.embed_tokens"].weight, weights.corrections["lm_head"].weight
    assert embedding is not None
    assert head is not None
    assert embedding.data_ptr() == head.data_ptr()


def test_an_adapter_of_another_base_is_rejected(workshop: Any, tied: tuple[Any, Model]) -> None:
    folder = workshop.adapter(workshop.base("phi3"), "stranger", r=4, target_modules=["qkv_proj"])
    with pytest.raises(Rejected):
        opened(folder, tied[1])


def test_a_cleared_slot_lets_go_of_its_tensors(workshop: Any, tied: tuple[Any, Model]) -> None:
    base, model = tied
    config = {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["embed_tokens", "model.norm"], "bias": "all"}
    weights = opened(workshop.adapter(base, "freed", r=4, **config), model)
    refs = [weakref.ref(tensor) for tensor in tensors(weights)]
    model.sites.install(1, weights)
    assert model.sites.rare == {1}
    del weights
    model.sites.clear(1)
    gc.collect()
    assert model.sites.rare == set()
    assert not any(ref() is not None for ref in refs)


@pytest.mark.parametrize("rows", [1, dora.BLOCK, dora.BLOCK + 1, 3 * dora.BLOCK - 5])
def test_dora_s_norms_are_those_of_the_whole_matrix(rows: int) -> None:
    torch.manual_seed(rows)
    weight, a, b = torch.randn(rows, 24), torch.randn(5, 24), torch.randn(rows, 5)
    torch.testing.assert_close(dora.linear_norms(weight, a, b, 0.7), (weight + 0.7 * b @ a).norm(dim=1))
    torch.testing.assert_close(dora.embedding_norms(weight, b, a.T, 0.7), (weight + 0.7 * b @ a).norm(dim=0))
