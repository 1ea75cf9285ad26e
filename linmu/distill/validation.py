"""How far the student is from its teacher on held-out samples: KL, agreement of the likeliest token, hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from linmu.distill.logs import CsvLog, read_csv
from linmu.distill.outlook import outlook
from linmu.distill.signals import Needs, SignalSource

SUMS = ("kl", "agree", "rows", "hidden", "tokens", "samples", "kl_off", "agree_off")


@dataclass(frozen=True)
class Distance:
    """Teacher and student on held-out samples.

    kl: mean over predicted tokens, in nats; top1: share of them with the same likeliest token; hidden: normalised
    squared error of the hidden states, mean over tokens and layers; samples, tokens: how many, tokens: predicted ones;
    kl_off, top1_off: without the text window, None for students that have none.
    """

    kl: float
    top1: float
    hidden: float
    samples: int
    tokens: int
    kl_off: float | None = None
    top1_off: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@torch.no_grad()
def measure(
    objective: nn.Module,
    source: SignalSource,
    needs: Needs,
    batches: Iterable[tuple[dict[str, Any], bool]],
    add_up: Callable[[Tensor], Tensor],
) -> Distance:
    """The student running by itself against its teacher.

    needs: hidden states, logits and the decoder's arguments; batches: with whether they count; `add_up` sums a
    float64 tensor over all processes.
    """
    was_training, windows = objective.training, False
    objective.eval()
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    for batch, counts in batches:
        batch_sums = objective(batch, source.signals(batch, needs))
        windows = windows or "kl_off" in batch_sums
        sums += torch.stack([batch_sums.get(name, torch.zeros(())).double().cpu() for name in SUMS]) * counts
    objective.train(was_training)
    total = dict(zip(SUMS, add_up(sums).tolist(), strict=True))
    rows, tokens = max(total["rows"], 1), max(total["tokens"], 1)
    means = (total["kl"] / rows, total["agree"] / rows, total["hidden"] / tokens)
    off = (total["kl_off"] / rows, total["agree_off"] / rows) if windows else (None, None)
    return Distance(*means, round(total["samples"]), round(total["rows"]), *off)


class Validation(TrainerCallback):
    """Measures before the first step, every `every` steps (0: never) and after the last; rows in validation.csv.

    tokens: how many the stage has trained on so far. From the third measurement with any on, what the slope so far
    promises is said.
    """

    def __init__(
        self,
        run: Callable[[], Distance],
        every: int,
        log: CsvLog,
        tokens: Callable[[], int],
        say: Callable[[str], None],
    ):
        self.run, self.every, self.log, self.tokens, self.say = run, every, log, tokens, say
        self.last: Distance | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop rows of steps that are about to be done again; measure the start."""
        if state.is_world_process_zero:
            self.log.rewind(state.global_step)
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure at the interval: before the step's checkpoint is written, so that a resumed run has the row."""
        if self.every and state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self._measure(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure the result."""
        self._measure(state)

    def _measure(self, state: Any) -> None:
        self.last = distance = self.run()
        if state.is_world_process_zero:
            self.log.rewind(state.global_step - 1)
            values = {name: value for name, value in distance.to_json().items() if value is not None}
            self.log.append({"step": state.global_step, **values, "trained_tokens": self.tokens()})
            self.say(
                f"validation at step {state.global_step}: KL {distance.kl:.4g}, same token {distance.top1:.1%}, "
                f"hidden error {distance.hidden:.4g}{without_window(distance)}"
            )
            if (text := outlook(read_csv(self.log.path), state.max_steps)) is not None:
                self.say(text)


def without_window(distance: Distance) -> str:
    """What a student says without its text window, for a line of text; empty where it has none."""
    if distance.kl_off is None or distance.top1_off is None:
        return ""
    return f"; without text window KL {distance.kl_off:.4g}, same token {distance.top1_off:.1%}"
