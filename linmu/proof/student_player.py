"""The student itself as a player: what transformers computes, with its cache (torch)."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from linmu.model.hf_inputs import hf_inputs
from linmu.processing import ModelInputs

KINDS = ("conv", "recurrent", "key", "value")


class StudentPlayer:
    """The student itself, as transformers runs it."""

    name = "student"

    def __init__(self, student: PreTrainedModel, inputs: ModelInputs):
        self.student, self.inputs = student, inputs

    @torch.no_grad()
    def start(self) -> np.ndarray:
        """One forward pass over the prompt, pixels included."""
        return self._take(self.student(**hf_inputs(self.inputs, self.student._prompt_rules), use_cache=True))

    @torch.no_grad()
    def step(self, token: int) -> np.ndarray:
        """One more token with the cache."""
        ids = torch.tensor([[token]])
        return self._take(self.student(input_ids=ids, past_key_values=self.cache, use_cache=True))

    def state(self) -> dict[str, np.ndarray]:
        """All states; the student keeps them in canonical axis order."""
        return {
            f"past.{index}.{kind}": layer.state[kind].float().numpy()
            for index, layer in enumerate(self.cache.layers)
            for kind in KINDS
            if kind in layer.state
        }

    def _take(self, output) -> np.ndarray:
        self.cache = output.past_key_values
        return output.logits[0, -1].float().numpy()
