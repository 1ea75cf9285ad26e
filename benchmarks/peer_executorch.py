"""The phones' peer: ExecuTorch's own export of the same teacher with its KV cache (8da4w), and running it.

Its best options on CPUs: XNNPACK for everything it takes, its custom kernel for attention over the cache, group 32 as
ours, embeddings in int8. Weights go to it as they are; halves of rotary embedding stay where Hugging Face has them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness import say

from linmu.errors import LinmuError

PROGRAM, PIECE = "peer.pte", 2048  # tokens of one call
TOP = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}


def build_program(teacher: Path, out: Path, context: int) -> Path:
    """Export the teacher for contexts of at most `context` tokens, once, in a process of its own -> the program."""
    program = out / f"{context}-{PROGRAM}"
    if not program.exists():
        say(f"ExecuTorch's own export of {teacher} with a cache for {context} tokens ...")
        command = [sys.executable, str(Path(__file__).resolve()), str(teacher), str(program), str(context)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LinmuError("ExecuTorch's export failed", got=(done.stderr.strip().splitlines() or ["no message"])[-1])
    return program


def own_name(name: str) -> str:
    """A Hugging Face weight's name in ExecuTorch's Llama."""
    base = name.removesuffix(".weight")
    if base in TOP:
        return TOP[base] + ".weight"
    _, _, layer, rest = base.split(".", 3)
    return f"layers.{layer}.{LAYER[rest]}.weight"


def export(teacher: Path, program: Path, context: int) -> None:
    """What the process of `build_program` does."""
    import torch
    from executorch.examples.models.llama.export_llama_lib import _export_llama
    from executorch.extension.llm.export.config.llm_config import LlmConfig
    from safetensors.torch import load_file

    program.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((teacher / "config.json").read_text())
    weights = {own_name(name): value.float() for name, value in load_file(teacher / "model.safetensors").items()}
    weights.setdefault("output.weight", weights["tok_embeddings.weight"])
    checkpoint, params = program.with_suffix(".pth"), program.with_suffix(".json")
    torch.save(weights, checkpoint)
    params.write_text(
        json.dumps(
            {
                "dim": config["hidden_size"],
                "n_layers": config["num_hidden_layers"],
                "n_heads": config["num_attention_heads"],
                "n_kv_heads": config["num_key_value_heads"],
                "vocab_size": config["vocab_size"],
                "hidden_dim": config["intermediate_size"],
                "norm_eps": config["rms_norm_eps"],
                "rope_theta": config["rope_parameters"]["rope_theta"],
                "use_hf_rope": True,
                "use_scaled_rope": False,
            }
        )
    )
    asked = LlmConfig()
    asked.base.checkpoint, asked.base.params = str(checkpoint), str(params)
    asked.base.metadata = json.dumps({"get_bos_id": 1, "get_eos_ids": [2]})
    asked.model.use_kv_cache = asked.model.use_sdpa_with_kv_cache = True
    asked.export.max_seq_length, asked.export.max_context_length = min(PIECE, context), context
    asked.export.output_name = str(program)
    asked.quantization.qmode, asked.quantization.group_size = "8da4w", 32
    asked.quantization.embedding_quantize = "8,0"
    asked.backend.xnnpack.enabled = asked.backend.xnnpack.extended_ops = True
    _export_llama(asked)
    checkpoint.unlink()


class Program:
    """A `forward` of ids [1, S] and positions that keeps its own past: the peer's, or one of ours.

    A call takes as many tokens as the program was planned for. whole: positions are those of all tokens; else that of
    the first one.
    """

    def __init__(self, program: Path, threads: int, whole: bool):
        import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401  # the peer's attention kernel
        import executorch.kernels.quantized  # noqa: F401  # the peer's table of embeddings

        from linmu.runtimes.et_runner import muted, open_program, set_threads

        set_threads(threads)
        self.whole, self.position = whole, 0
        self.program: Any = open_program(program)
        self.piece = int(self.program.metadata("forward").input_tensor_meta(0).sizes()[1])
        with muted():
            self.method: Any = self.program.load_method("forward")

    def read(self, prompt: np.ndarray) -> None:
        """Read a prompt in pieces."""
        for low in range(0, len(prompt), self.piece):
            self._call(prompt[low : low + self.piece])

    def step(self) -> None:
        """One decode step."""
        self._call(np.array([7]))

    def _call(self, ids: np.ndarray) -> None:
        import torch

        count = len(ids) if self.whole else 1
        positions = torch.arange(self.position, self.position + count)
        self.method.execute([torch.from_numpy(np.ascontiguousarray(ids))[None], positions])
        self.position += len(ids)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
