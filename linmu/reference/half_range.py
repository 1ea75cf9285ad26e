"""Which matrices can be multiplied in float16: those whose factors and products stay far below its largest number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.conversion.probe import default_probe
from linmu.formats.state_precision import LARGEST_HALF
from linmu.model.mapped import release_pages, upcast
from linmu.model.modeling import decoder_layers

ROOM = 8.0  # other prompts reach further than the probe: what stays below 65504 / ROOM counts as safe
PARTS = {  # of a layer's packed matrices (linmu/step/form.py): ends of the names of their linear modules
    "in_proj": ("flex.q_proj", "flex.k_proj", "flex.v_proj", ".dt_proj", "gate_forward", "gate_backward", "alpha"),
    "swin": ("swin.q_proj", "swin.k_proj", "swin.v_proj"),
    "out_proj": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def packed_linears(student: PreTrainedModel) -> dict[str, list[nn.Linear]]:
    """The decoder's linear modules by the packed name of the matrix that they are part of."""
    embedding, head = student.get_input_embeddings(), student.get_output_embeddings()
    linears: dict[str, list[nn.Linear]] = {"token_embedding" if head.weight is embedding.weight else "head": [head]}
    for index, layer in enumerate(decoder_layers(student)):
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                packed = next(key for key, ends in PARTS.items() if name.endswith(ends))
                linears.setdefault(f"layers.{index}.{packed}", []).append(module)
    return linears


@torch.no_grad()
def too_wide(student: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """Packed names of the matrices that must stay in float32, sorted: too large on the probe prompt, or weights are.

    `folder`: the student's, for its tokenizer and processor.
    """
    reached: dict[str, float] = {}
    hooks = []
    for packed, linears in packed_linears(student).items():
        for linear in linears:
            reached[packed] = max(reached.get(packed, 0.0), _largest(linear.weight))
            hooks.append(linear.register_forward_hook(_meter(reached, packed)))
        release_pages(student)
    try:
        with upcast(student):
            student(**_probe(student, folder))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(sorted(name for name, size in reached.items() if not size <= LARGEST_HALF))


def _meter(reached: dict[str, float], packed: str):
    def hook(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        product = output if module.bias is None else output - module.bias
        reached[packed] = max(reached[packed], ROOM * _largest(inputs[0]), ROOM * _largest(product))

    return hook


def _largest(x: Tensor) -> float:
    """The largest magnitude; NaN counts as infinite."""
    low, high = x.aminmax() if x.numel() else (x.new_zeros(()),) * 2  # |x| would be a copy
    largest = max(-float(low), float(high))
    return largest if float(low) == float(low) else float("inf")


def _probe(student: PreTrainedModel, folder: Path) -> dict[str, Any]:
    inputs = default_probe(Path(folder), student.linmu_family, student._prompt_rules)
    vocab = student.config.get_text_config().vocab_size
    return inputs or {"input_ids": torch.arange(min(vocab, 64))[None]}
