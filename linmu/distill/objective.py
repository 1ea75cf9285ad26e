"""The student and its losses as one module, so that data-parallel wrappers see every use of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from linmu.distill.losses import TopK, ce_sum, kl_sum, nmse_sum, token_scale
from linmu.distill.recipe import Stage
from linmu.distill.signals import Signals, label_rows, layer_outputs, next_labels, valid_tokens
from linmu.distill.window_dropout import set_window_off
from linmu.model.attention import LAYOUT_ARGUMENT
from linmu.model.modeling import GRID_ARGUMENTS, decoder_layers

ROW_ELEMENTS = 2**25  # logits held at a time, 128 MiB in float32; more rows are done in pieces and recomputed


class Objective(nn.Module):
    """forward(batch, signals, counts) -> {"loss": ..., and every part before its weight}.

    `checkpoint_mixers` recomputes the mixers of the layer loss in the backward pass; `touch_all` gives every trained
    weight of a mixer a gradient, 0 where it is not used.
    """

    def __init__(
        self, student: PreTrainedModel, stage: Stage, checkpoint_mixers: bool = False, touch_all: bool = False
    ):
        super().__init__()
        self.student, self.stage, self.checkpoint_mixers = student, stage, checkpoint_mixers
        if touch_all:
            for layer in decoder_layers(student):
                layer.self_attn.register_forward_hook(_touch)

    def forward(self, batch: dict[str, Any], signals: Signals, counts: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of one collated batch; every part is a sum over tokens divided by its count.

        counts [2]: tokens and predicted tokens to divide by. Without them the result is what validation adds up:
        "kl", "agree" and "rows" of predicted tokens, "hidden" and "tokens" of all, "samples"; for students with a text
        window also "kl_off" and "agree_off", those without it.
        """
        layout = self._layout(batch)
        set_window_off(self.student, batch.get("window_off"))
        if counts is None:
            return self._measure(batch, signals, layout)
        weights, parts = self.stage.weights, {}
        if "layer" in weights:
            parts["layer"] = self._layer_loss(batch, signals, layout) / counts[0]
        if set(weights) - {"layer"}:
            parts |= self._own_losses(batch, signals, layout, counts)
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        if torch.is_grad_enabled() and not loss.requires_grad:  # text alone, where only windows are trained
            loss = loss + 0 * next(weight for weight in self.parameters() if weight.requires_grad).sum()
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _layout(self, batch: dict[str, Any]) -> dict[str, Tensor] | None:
        grids = {name: batch.get(name) for name in GRID_ARGUMENTS}
        mask, media = batch.get("attention_mask"), batch.get("linmu_media")
        return self.student.layout_tensors(batch["input_ids"], mask, media, grids)

    def _layer_loss(self, batch: dict[str, Any], signals: Signals, layout: dict[str, Tensor] | None) -> Tensor:
        """Every mixer on the teacher's input of its layer; no MLP runs."""
        valid, losses = valid_tokens(batch), []
        arguments = {
            "position_embeddings": signals.position_embeddings,
            "attention_mask": None if bool(valid.all()) else valid,
            LAYOUT_ARGUMENT: layout,
        }
        layers = decoder_layers(self.student)
        for layer, u, target in zip(layers, signals.layer_in, signals.layer_out, strict=True):
            if self.checkpoint_mixers:
                y, _ = checkpoint(layer.self_attn, u, use_reentrant=False, **arguments)
            else:
                y, _ = layer.self_attn(u, **arguments)
            losses.append(nmse_sum(y, target, token_scale(target, valid)))
        return torch.stack(losses).mean()

    def _pass(self, batch, signals: Signals, layout, with_hidden: bool) -> tuple[Tensor | None, Tensor]:
        """The student on what the teacher's decoder got: summed error of hidden states, and states to predict from."""
        hidden: list[Tensor] = []
        decoder, arguments = self.student.get_decoder(), self._decoder_arguments(batch, signals, layout)
        with layer_outputs(decoder.layers, hidden, with_hidden):
            output = decoder(**arguments, use_cache=False, **{LAYOUT_ARGUMENT: layout})
        rows = output.last_hidden_state.flatten(0, 1)[label_rows(batch["labels"])]
        if not with_hidden:
            return None, rows
        valid = valid_tokens(batch)
        sums = [nmse_sum(s, t, token_scale(t, valid)) for s, t in zip(hidden, signals.hidden, strict=True)]
        return torch.stack(sums).mean(), rows

    def _decoder_arguments(self, batch, signals: Signals, layout) -> dict[str, Any]:
        """Those of the teacher's decoder: pictures as the teacher sees them, text through the student's embeddings."""
        teacher_embeds = signals.decoder.get("inputs_embeds")
        if teacher_embeds is None:
            return signals.decoder
        embeds = self.student.get_input_embeddings()(batch["input_ids"])
        if layout is not None:
            embeds = torch.where(layout["vision"].view(*embeds.shape[:2], 1), teacher_embeds, embeds)
        return {**signals.decoder, "inputs_embeds": embeds}

    def _own_losses(self, batch, signals: Signals, layout, counts: Tensor) -> dict[str, Tensor]:
        weights = self.stage.weights
        hidden, rows = self._pass(batch, signals, layout, "hidden" in weights)
        parts = {} if hidden is None else {"hidden": hidden / counts[0]}
        names = [name for name in ("logits", "ce") if name in weights]
        if not names:
            return parts
        labels, temperature = next_labels(batch["labels"]), self.stage.temperature

        def losses(logits: Tensor, part: slice) -> Tensor:
            table: dict[str, Callable[[], Tensor]] = {
                "logits": lambda: kl_sum(logits, rows_of(signals.logits, part), temperature),
                "ce": lambda: ce_sum(logits, labels[part]),
            }
            return torch.stack([table[name]() for name in names])

        sums = self._over_rows(rows, losses) / counts[1]
        return parts | dict(zip(names, sums, strict=True))

    def _over_rows(self, rows: Tensor, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
        """The sum of function(logits, part) over pieces of the rows small enough for a large vocabulary."""
        head = self.student.get_output_embeddings()
        size = max(1, ROW_ELEMENTS // head.weight.shape[0])
        if len(rows) <= size:
            return function(head(rows), slice(0, len(rows)))

        def piece(hidden: Tensor, start: int) -> Tensor:
            return function(head(hidden), slice(start, start + len(hidden)))

        starts = range(0, len(rows), size)
        return sum(checkpoint(piece, rows[i : i + size], i, use_reentrant=False) for i in starts)

    def _measure(self, batch, signals: Signals, layout) -> dict[str, Tensor]:
        hidden, rows = self._pass(batch, signals, layout, True)
        assert hidden is not None
        sums = {"rows": len(rows), "hidden": hidden, "samples": len(batch["labels"])}
        sums |= dict(zip(("kl", "agree"), self._compared(rows, signals), strict=True))
        if self.student.mmate.text_window:
            set_window_off(self.student, torch.ones(len(batch["labels"]), dtype=torch.bool, device=rows.device))
            _, rows = self._pass(batch, signals, layout, False)
            set_window_off(self.student, None)
            sums |= dict(zip(("kl_off", "agree_off"), self._compared(rows, signals), strict=True))
        sums["tokens"] = valid_tokens(batch).sum()
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in sums.items()}

    def _compared(self, rows: Tensor, signals: Signals) -> Tensor:
        """Sums over predicted tokens of what the student's states `rows` say: KL, same likeliest token."""

        def compare(logits: Tensor, part: slice) -> Tensor:
            teacher = rows_of(signals.logits, part)
            best = teacher.indices[:, 0] if isinstance(teacher, TopK) else teacher.argmax(-1)
            return torch.stack([kl_sum(logits, teacher), (logits.argmax(-1) == best).sum().float()])

        return self._over_rows(rows, compare)


def _touch(mixer: nn.Module, _: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    used = [weight.sum() for weight in mixer.parameters() if weight.requires_grad]
    return (output[0] + 0 * torch.stack(used).sum().to(output[0].dtype), output[1]) if used else output


def rows_of(teacher: Tensor | TopK | None, part: slice) -> Tensor | TopK:
    """Some rows of a teacher's logits."""
    if isinstance(teacher, TopK):
        return TopK(teacher.values[part], teacher.indices[part], teacher.log_z[part])
    assert teacher is not None, "the signals hold no logits"
    return teacher[part]
