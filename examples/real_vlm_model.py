"""The teacher as it is trained: pictures or their features in, losses out.

Weights are bfloat16 while they compute; the optimiser keeps them in float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import transformers as hf
from real_vlm_batches import IGNORED, Batch, Rows, micro_batches
from real_vlm_features import Features, tower_features
from torch import Tensor
from torch.nn.functional import cross_entropy


def answer_logits(model: hf.LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Logits [answer tokens, vocabulary] float32 where a batch has labels, in order of rows and tokens."""
    inner = model.model
    embedded = inner.get_input_embeddings()(batch.ids)
    features = tower_features(model, batch.pixels) if batch.features is None else batch.features
    seen = inner.multi_modal_projector(features.to(embedded.dtype))
    places = (batch.ids == model.config.image_token_index)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(places, seen.flatten(0, 1))
    hidden = inner.language_model(
        inputs_embeds=embedded, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(hidden[batch.labels != IGNORED]).float()


def summed_loss(model: hf.LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Sum of the cross-entropies of all answer tokens."""
    return cross_entropy(answer_logits(model, batch), batch.labels[batch.labels != IGNORED], reduction="sum")


@torch.inference_mode()
def measured(
    model: hf.LlavaForConditionalGeneration, rows: Rows, data: Features, count: int, live: bool = False
) -> tuple[dict[str, float], float]:
    """Share of right answers by task and "all" on the first `count` rounds, and the loss per answer token.

    An answer is right when each of its tokens and its end is the likeliest one after those before it: exactly when
    greedy generation writes it.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    loss, tokens = 0.0, 0
    for start in range(0, min(count, len(data.rounds)), 32):
        rounds = data.rounds[start : min(start + 32, count)]
        made = [rows(item) for item in rounds]
        names = [[sample.task or "" for sample in item.samples] for item in rounds]
        order = sorted(range(len(made)), key=lambda i: len(made[i].ids))
        waiting = [name for i in order for name in names[i]]
        for batch in micro_batches(made, data, live):
            logits, labels = answer_logits(model, batch), batch.labels[batch.labels != IGNORED]
            loss += float(cross_entropy(logits, labels, reduction="sum"))
            tokens += len(labels)
            questions = batch.questions[batch.labels != IGNORED]
            hits = logits.argmax(-1) == labels
            for number in range(int(questions.max()) + 1):
                task = waiting.pop(0)
                for name in (task, "all"):
                    asked[name] += 1
                    right[name] += bool(hits[questions == number].all())
    return {name: right[name] / asked[name] for name in sorted(asked)}, loss / tokens


class Masters:
    """AdamW on float32 copies of parameters that are about to become bfloat16, one learning rate a group."""

    def __init__(self, groups: Sequence[tuple[Iterable[torch.nn.Parameter], float]], weight_decay: float = 0.01):
        self.live = [[p for p in parameters] for parameters, _ in groups]
        self.copies = [[p.detach().float().clone() for p in group] for group in self.live]
        self.rates = [rate for _, rate in groups]
        self.optimizer = torch.optim.AdamW(
            [{"params": group, "lr": rate} for group, rate in zip(self.copies, self.rates, strict=True)],
            betas=(0.9, 0.98),
            weight_decay=weight_decay,
            fused=True,
        )

    def step(self, shares: Sequence[float], scale: float, clip: float = 1.0) -> float:
        """One step with each group's rate times its share, gradients times `scale`; returns their norm."""
        for live, copies in zip(self.live, self.copies, strict=True):
            for parameter, copy in zip(live, copies, strict=True):
                copy.grad = None if parameter.grad is None else parameter.grad.float().mul_(scale)
                parameter.grad = None
        for group, rate, share in zip(self.optimizer.param_groups, self.rates, shares, strict=True):
            group["lr"] = rate * share
        norm = torch.nn.utils.clip_grad_norm_([c for group in self.copies for c in group if c.grad is not None], clip)
        self.optimizer.step()
        self.spread()
        return float(norm)

    @torch.no_grad()
    def spread(self) -> None:
        """Round the float32 copies into the parameters that compute."""
        for live, copies in zip(self.live, self.copies, strict=True):
            for parameter, copy in zip(live, copies, strict=True):
                parameter.copy_(copy)

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"copies": self.copies, "optimizer": self.optimizer.state_dict()}

    @torch.no_grad()
    def load(self, state: dict) -> None:
        """Go on from a checkpoint."""
        for group, saved in zip(self.copies, state["copies"], strict=True):
            for copy, value in zip(group, saved, strict=True):
                copy.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.spread()


@torch.no_grad()
def save_trained(model: hf.LlavaForConditionalGeneration, masters: Masters, folder: Path) -> None:
    """Replace the folder's weights by the trained ones, all of them in float16."""
    model.float()
    for live, copies in zip(masters.live, masters.copies, strict=True):
        for parameter, copy in zip(live, copies, strict=True):
            parameter.data = copy.clone()
    model.half().save_pretrained(folder)
