"""Models in half precision, computed in float32 one module at a time: no second copy of the model is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

HALVES = (torch.float16, torch.bfloat16)


def decoder_parts(model: PreTrainedModel) -> list[nn.Module]:
    """What is widened one at a time: embedding, the decoder's layers, its norm, the head."""
    decoder = model.get_decoder()
    return [model.get_input_embeddings(), *decoder.layers, decoder.norm, model.get_output_embeddings()]


@contextmanager
def widened(parts: list[nn.Module], after: Callable[[], None] | None = None) -> Iterator[None]:
    """While open, a forward pass turns the half-precision weights of each part into float32 when it comes to it.

    `after` is called whenever a part has its stored weights back.
    """
    stored: dict[nn.Parameter, torch.Tensor] = {}

    def read(module: nn.Module, _: Any) -> None:
        for value in module.parameters():
            if value.dtype in HALVES:
                stored[value] = value.data
                value.data = value.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for value in module.parameters():
            if value in stored:
                value.data = stored.pop(value)
        if after is not None:
            after()

    handles = []
    for part in parts:
        handles += [part.register_forward_pre_hook(read), part.register_forward_hook(restore)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for value, data in stored.items():  # of a pass that broke off
            value.data = data
