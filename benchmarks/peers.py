"""What others do with the reference workload: Transformers, PEFT and llama.cpp's server, each as its users run it.

A step is what all rows wait for their next token: `step(rows, tokens)` gives the median seconds of `tokens` of them.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.workload import LINEARS, PROMPT, RANK, gaps


class Peer:
    """Transformers' model, in float32, with PEFT's adapters on it if there are any. `clock`: of decoding steps."""

    def __init__(self, base: Path, folder: Path, adapters: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._model: Any
        self._model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._vocabulary: int = self._model.config.vocab_size
        self.folders: list[Path] = []
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS, init_lora_weights=False)
        for number in range(adapters):
            name = f"a{number}"
            if number:
                self._model.add_adapter(name, config)
            else:
                self._model = get_peft_model(self._model, config, adapter_name=name)
        self._model.train(False)
        if adapters:
            self._model.save_pretrained(folder)
            self.folders = [folder / f"a{number}" for number in range(adapters)]

    @torch.inference_mode()
    def step(self, rows: int, tokens: int, *, mixed: bool = True) -> float:
        """One `generate` of all rows; with adapters PEFT's mixed batch, each row its own, or the active one."""
        ids = self._prompts(rows, PROMPT)
        names = [f"a{row % len(self.folders)}" for row in range(rows)] if self.folders and mixed else []
        times: list[float] = []

        def note(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            times.append(self._clock())
            return torch.zeros(rows, dtype=torch.bool)

        self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            max_new_tokens=tokens + 1,
            stopping_criteria=[note],
            **({"adapter_names": names} if names else {}),
        )
        return gaps(times)

    def switching(self, rows: int, tokens: int) -> float:
        """One request after the other, each with its own adapter made the active one before."""
        started = time.perf_counter()
        self._model.set_adapter(f"a{rows % len(self.folders)}")
        switch = time.perf_counter() - started
        return rows * (switch / tokens + self.step(1, tokens, mixed=False))

    @torch.inference_mode()
    def continuous(self, rows: int, tokens: int) -> float:
        """Transformers' continuous batching, which knows no mixed adapters."""
        options = {"max_new_tokens": tokens + 1, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        greedy = GenerationConfig(**options)  # type: ignore[no-untyped-call]
        found = self._model.generate_batch(
            self._prompts(rows, PROMPT).tolist(),
            generation_config=greedy,
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512),
            record_timestamps=True,
            progress_bar=False,
            warmup=False,
        )
        return max(gaps(output.timestamps) for output in found.values())

    @torch.inference_mode()
    def prefill(self, rows: int, length: int) -> float:
        """Seconds for `rows` prompts of `length` tokens."""
        ids = self._prompts(rows, length)
        started = time.perf_counter()
        self._model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return time.perf_counter() - started

    def _prompts(self, rows: int, length: int) -> torch.Tensor:
        return torch.randint(0, self._vocabulary, (rows, length))
