"""llama.cpp's server beside the engine: the same weights as GGUF, asked over HTTP for rows at once.

`--llama-server` names the program, built from its own sources, and options if it needs some; the files are written by
the `gguf` package.
The vocabulary is numbers, since prompts are sent as token ids. It serves requests for different adapters one after the
other, as its documentation says.
"""

import json
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file

from benchmarks.workload import PROMPT

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
READY_WITHIN = 120.0  # seconds


def tensor_name(name: str) -> str:
    """GGUF's name for a weight of Qwen2, as Transformers calls it."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, *module, kind = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(module)]}.{kind}"


def write_base(folder: Path, into: Path, kind: str) -> Path:
    """The model of `folder` as one file, its matrices in `kind`: F32, F16 or Q8_0."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    writer = gguf.GGUFWriter(into, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>" for number in range(config["vocab_size"])])
    writer.add_token_scores([0.0] * config["vocab_size"])
    writer.add_token_types([1] * config["vocab_size"])
    matrices = gguf.GGMLQuantizationType[kind]
    for name, tensor in load_file(folder / "model.safetensors").items():
        _add(writer, tensor_name(name), tensor.float().numpy(), matrices if tensor.ndim == 2 else matrices.F32)
    return _written(writer, into)


def write_adapter(folder: Path, into: Path) -> Path:
    """A PEFT adapter as one file, in float32."""
    import gguf

    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(into, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        weight = f"{tensor_name(f'{module}.weight')}.{side.lower()}"
        _add(writer, weight, tensor.float().numpy(), gguf.GGMLQuantizationType.F32)
    return _written(writer, into)


def _add(writer: Any, name: str, numbers: Any, kind: Any) -> None:
    import gguf

    writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)


def _written(writer: Any, into: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return into


class LlamaServer:
    """A running server of one base; adapters are named by their place in the list it was started with."""

    def __init__(self, url: str, vocabulary: int, adapters: int) -> None:
        self._client = httpx.Client(base_url=url, timeout=600)
        self._vocabulary = vocabulary
        self._adapters = adapters

    def step(self, rows: int, tokens: int, distinct: bool = False) -> float:
        """Seconds in which all rows get one token more, prompts apart; `distinct`: each asks for its own adapter."""
        return (self._seconds(rows, tokens + 1, distinct) - self._seconds(rows, 1, distinct)) / tokens

    def _seconds(self, rows: int, tokens: int, distinct: bool) -> float:
        bodies = [self._body(row, tokens, distinct) for row in range(rows)]
        started = time.perf_counter()
        with ThreadPoolExecutor(rows) as pool:
            for answer in pool.map(lambda body: self._client.post("/completion", json=body), bodies):
                answer.raise_for_status()
                assert answer.json()["tokens_predicted"] == tokens
        return time.perf_counter() - started

    def _body(self, row: int, tokens: int, distinct: bool) -> dict[str, Any]:
        return {
            "prompt": torch.randint(3, self._vocabulary, (PROMPT,)).tolist(),
            "n_predict": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "lora": [{"id": row % self._adapters, "scale": float(distinct)}],  # an empty list would apply them all
        }


@contextmanager
def serving(
    program: str, base: Path, adapters: list[Path], rows: int, threads: int, vocabulary: int
) -> Iterator[LlamaServer]:
    """The server on a free port of loopback, ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*shlex.split(program), "--model", str(base), "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    command += ["--parallel", str(rows), "--ctx-size", str(rows * 256), "--threads", str(threads)]
    command += [part for adapter in adapters for part in ("--lora", str(adapter))]
    command += ["--lora-init-without-apply"] if adapters else []
    with (base.parent / "llama.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            yield LlamaServer(f"http://127.0.0.1:{port}", vocabulary, max(1, len(adapters)))
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama.cpp's server ended with {process.returncode}; its log is beside its model")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"llama.cpp's server was not ready within {READY_WITHIN:.0f} s")
