"""Models of every promised architecture, adapters that PEFT made for them, and an engine driven step by step."""

import copy
import itertools
import random
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor
from transformers import AutoConfig

from adapters.base import kind
from inference.client import Sampling
from inference.engine.blocks import BlockPool
from inference.engine.engine import Engine
from inference.engine.runner import Runner
from inference.engine.scheduler import Begun, Ended, Event, Limits, Plan, Sampled, Scheduler, Token
from inference.engine.sequence import Sequence
from inference.lora.arena import Arena
from inference.lora.slots import SlotPool
from inference.lora.weights import AdapterWeights, read
from inference.models.load import Model, load

VOCABULARY = 199
ROOMY = 64 << 20  # bytes, more than any test's adapters take
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 24},
    "gemma": {"num_key_value_heads": 1},
    "phi3": {"sliding_window": 24, "num_key_value_heads": 4, "head_dim": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 56},
    "qwen3_moe": {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe")


@dataclass(frozen=True)
class Base:
    """A model's folder; the oracle is Transformers and PEFT, asked for one request at a time, in float32."""

    folder: Path

    @cached_property
    def _network(self) -> Any:
        auto = kind(AutoConfig.from_pretrained(self.folder))
        return auto.from_pretrained(self.folder, dtype=torch.float32).eval()

    def oracle(self, adapter: Path | None) -> Any:
        """Transformers' model, with the adapter put in by PEFT."""
        model = copy.deepcopy(self._network)
        return model if adapter is None else PeftModel.from_pretrained(model, adapter).eval()

    def answers(self, adapter: Path | None, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """Greedy continuations of exactly `tokens` tokens."""
        return self.answers_and_logits(adapter, prompts, tokens)[0]

    @torch.inference_mode()
    def answers_and_logits(
        self, adapter: Path | None, prompts: list[list[int]], tokens: int
    ) -> tuple[list[list[int]], list[Tensor]]:
        """Greedy continuations of exactly `tokens` tokens, and the logits [tokens, vocabulary] they were drawn from."""
        model = self.oracle(adapter)
        model.generation_config.eos_token_id = None
        options = {"do_sample": False, "max_new_tokens": tokens, "output_logits": True, "return_dict_in_generate": True}
        found, logits = [], []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
            found.append(output.sequences[0, len(prompt) :].tolist())
            logits.append(torch.cat(output.logits))
        return found, logits


@torch.no_grad()
def train(peft: Any) -> None:
    """Give everything that PEFT would train another value, far enough to change the answers."""
    for name, weight in peft.named_parameters():
        if not weight.requires_grad:
            continue
        if "magnitude" in name:
            weight.mul_(torch.empty_like(weight).uniform_(0.6, 1.5))
        elif "lora_" in name:
            weight.add_(torch.empty_like(weight).normal_(std=0.08))
        else:
            weight.add_(torch.empty_like(weight).normal_(std=0.1))


class WatchedRunner(Runner):
    """A runner that keeps the logits of every token."""

    def __init__(self, model: Model, blocks: int, size: int, logits: dict[Sequence, list[Tensor]]) -> None:
        super().__init__(model, blocks, size)
        self._seen: list[Tensor] = []
        self._logits = logits
        model.network.register_forward_hook(lambda module, inputs, output: self._seen.append(output.logits[0]))

    def run(self, plan: Plan) -> list[Sampled | None]:
        self._seen.clear()
        drawn = super().run(plan)
        samplers = [row.sequence for row in plan.rows if row.samples]
        for sequence, row in zip(samplers, self._seen[-1], strict=True):
            self._logits.setdefault(sequence, []).append(row)
        return drawn


@dataclass
class Driver:
    """An engine whose steps the test takes itself; the laws are asserted after each."""

    engine: Engine
    scheduler: Scheduler
    slots: SlotPool
    model: Model
    events: list[Event]
    kept: dict[Sequence, list[Tensor]] = field(default_factory=dict)  # the logits of each request's tokens
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def submit(self, prompt: list[int], digest: str = "", share: str = "", salt: str = "", **sampling: Any) -> Sequence:
        options = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True} | sampling
        sequence = Sequence(next(self._ids), prompt, Sampling(**options), digest, share, 1.0, salt)
        self.scheduler.admissible(sequence.prompt, sequence.sampling)
        self.engine.submit(sequence)
        return sequence

    def run(self, most: int = 2000) -> None:
        """Steps until nothing waits or runs. Fails if that takes more than `most` of them."""
        for _ in range(most):
            if not self.engine.step() and not self.scheduler.live:
                return
        pytest.fail(f"{len(self.scheduler.live)} requests had not ended after {most} steps")

    def answer(self, prompt: list[int], digest: str = "", **options: Any) -> list[int]:
        sequence = self.submit(prompt, digest, **options)
        self.run()
        return self.tokens(sequence)

    def tokens(self, sequence: Sequence) -> list[int]:
        return [event.token for event in self.events if isinstance(event, Token) and event.sequence is sequence]

    def logits(self, sequence: Sequence) -> Tensor:
        """[tokens, vocabulary]"""
        return torch.stack(self.kept[sequence])

    def logprobs(self, sequence: Sequence) -> list[float]:
        """Of the chosen tokens."""
        told = [event.logprobs for event in self.events if isinstance(event, Token) and event.sequence is sequence]
        return [one.chosen[1] for one in told if one is not None]

    def ended(self, sequence: Sequence) -> Ended | None:
        return next((event for event in self.events if isinstance(event, Ended) and event.sequence is sequence), None)

    def begun(self) -> list[Sequence]:
        return [event.sequence for event in self.events if isinstance(event, Begun)]


class Workshop:
    """Makes models, adapters and engines; each model and adapter once."""

    vocabulary = VOCABULARY
    architectures = tuple(ARCHITECTURES)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def base(self, architecture: str = "llama", **changes: Any) -> Base:
        """A freshly initialised model of a few layers."""
        folder = self._folder / (f"{architecture}-{crc32(repr(changes).encode()):08x}" if changes else architecture)
        if not folder.exists():
            torch.manual_seed(0)
            settings = COMMON | ARCHITECTURES.get(architecture, {}) | changes
            settings = {name: value for name, value in settings.items() if value is not None}
            config = AutoConfig.for_model(architecture, **settings)
            kind(config).from_config(config, dtype=torch.float32).save_pretrained(folder)
        return Base(folder)

    def adapter(self, base: Base, seed: int | str, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
        """An adapter whose trained tensors are all random, as PEFT saves it; one for each base and `seed`."""
        folder = self._folder / "adapters" / f"{base.folder.name}-{seed}"
        if not folder.exists():
            torch.manual_seed(sum(str(seed).encode()))
            options: dict[str, Any] = {"task_type": "CAUSAL_LM", "init_lora_weights": False} | config
            peft: Any = get_peft_model(base.oracle(None), LoraConfig(**options))
            train(peft)
            peft.to(dtype).save_pretrained(folder)
        return folder

    def with_base_weights(self, base: Base, seed: str, **config: Any) -> Path:
        """An adapter that was saved with the base's embedding and head, which had been trained beside it."""
        folder = self._folder / "adapters" / f"{base.folder.name}-{seed}"
        if not folder.exists():
            torch.manual_seed(0)
            model = base.oracle(None)
            with torch.no_grad():
                for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
                    weight.add_(torch.empty_like(weight).normal_(std=0.1))
            peft: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config))
            train(peft)
            peft.save_pretrained(str(folder), save_embedding_layers=True)
        return folder

    def converted(self, base: Base, init: Any, **config: Any) -> Path:
        """An adapter initialised in a way that changes the base, trained, and converted to plain LoRA by PEFT."""
        folder = self._folder / "adapters" / f"{base.folder.name}-{init}"
        if not folder.exists():
            torch.manual_seed(0)
            model, options = base.oracle(None), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=init, **config)
            if init == "corda":
                options.corda_config = CordaConfig()
                prompts = [torch.tensor([self.prompt(200, seed)]) for seed in range(4)]
                preprocess_corda(model, options, lambda: deque(map(model, prompts), maxlen=0).clear())
            peft: Any = get_peft_model(model, options)
            untrained = folder.with_name(f"{folder.name}-untrained")
            peft.peft_config["default"].init_lora_weights = True
            peft.save_pretrained(str(untrained))
            peft.peft_config["default"].init_lora_weights = init
            train(peft)
            peft.save_pretrained(folder, path_initial_model_for_weight_conversion=str(untrained))
        return folder

    def base_at(self, folder: Path) -> Base:
        return Base(folder)

    def uploadable(self, adapter: Path) -> Path:
        """A folder with the two files of the adapter that a version keeps."""
        folder = adapter.with_name(f"{adapter.name}-files")
        folder.mkdir(exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(adapter / name, folder / name)
        return folder

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        numbers = random.Random(f"{length}-{seed}")
        return [numbers.randrange(3, self.vocabulary) for _ in range(length)]

    def engine(
        self,
        base: Base,
        adapters: Mapping[str, Path] | None = None,
        *,
        slots: int = 8,
        blocks: int = 96,
        rows: int = 16,
        batch_tokens: int = 48,
        load_with: Callable[[str], Future[AdapterWeights]] | None = None,
        **pool: Any,
    ) -> Driver:
        """An engine over 16-token blocks; `adapters` are found under their names instead of digests."""
        model = load(str(base.folder), torch.device("cpu"), torch.float32, slots)
        pool.setdefault("room", Arena(ROOMY, model.device))
        slot_pool = SlotPool(slots, model.sites, load_with or _at_once(adapters or {}, model), **pool)
        limits = Limits(model.spec.context_length, model.spec.vocab_size, rows, batch_tokens)
        scheduler = Scheduler(limits, BlockPool(blocks, 16), slot_pool, model.stops)
        events: list[Event] = []
        logits: dict[Sequence, list[Tensor]] = {}
        engine = Engine(scheduler, WatchedRunner(model, blocks, 16, logits), events.extend, check=True)
        return Driver(engine, scheduler, slot_pool, model, events, logits)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The farthest that any of ours lies from theirs, relative to the largest of its row; [tokens, vocabulary] each."""
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)).max())


def _at_once(adapters: Mapping[str, Path], model: Model) -> Callable[[str], Future[AdapterWeights]]:
    def load_now(digest: str) -> Future[AdapterWeights]:
        future: Future[AdapterWeights] = Future()
        try:
            future.set_result(read(adapters[digest], model.spec, model.device, model.sites.frozen))
        except Exception as error:
            future.set_exception(error)
        return future

    return load_now


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))
