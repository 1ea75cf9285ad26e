"""What a run tells while it trains: a bar, a line an interval, and rows in a CSV file. One process writes."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from linmu.distill.recipe import LOSSES, Stage, Stop
from linmu.files.atomic import atomic_file
from linmu.system.components import installed
from linmu.system.interrupts import raise_if_stopped
from linmu.system.meter import peak_bytes
from linmu.system.units import duration

LEAST_SECONDS = 1e-9  # a clock may stand still
TRAINING_COLUMNS = (
    "step",
    "loss",
    *LOSSES,
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "peak_mib",
    "seconds",
)
VALIDATION_COLUMNS = ("step", "kl", "top1", "hidden", "samples", "tokens", "kl_off", "top1_off", "trained_tokens")


class CsvLog:
    """Rows of numbers with a `step`, appended one by one; `rewind` drops rows after a step.

    Where TensorBoard is installed the same figures go to a folder `tensorboard` beside the file.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]):
        self.path, self.columns = path, columns
        self.board: Any = None

    def rewind(self, step: int) -> None:
        """Keep the rows up to `step` (0: start anew); to be called before the first `append`."""
        self.board = self.board or open_board(self.path.parent / "tensorboard", step + 1)
        rows = [row for row in read_csv(self.path) if row["step"] <= step] if self.path.is_file() else []
        with atomic_file(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows({name: _text(value) for name, value in row.items()} for row in rows)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; other keys than the columns are left out."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writerow({name: _text(value) for name, value in row.items()})
        if self.board is not None:
            for name in (name for name in self.columns[1:] if name in row):
                self.board.add_scalar(f"{self.path.stem}/{name}", row[name], row["step"])
            self.board.flush()


def open_board(folder: Path, first_step: int) -> Any:
    """TensorBoard's writer, which hides earlier figures from `first_step` on; None where it is not installed."""
    if not installed("tensorboard"):
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=first_step)


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV log; empty cells are left out, a row that a kill cut short too."""
    with path.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    rows = []
    for record in records:
        try:
            rows.append({name: float(value) for name, value in record.items() if name is not None and value})
        except ValueError:
            continue
    return [row for row in rows if "step" in row and len(row) > 1]


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class TrainingLog(TrainerCallback):
    """A bar on a terminal, a line an interval and training.csv."""

    def __init__(self, stage: Stage, log: CsvLog, say: Callable[[str], None]):
        self.stage, self.log, self.say = stage, log, say
        self.bar: tqdm | None = None
        self.clock, self.tokens = 0.0, 0.0
        self.start: tuple[float, int] | None = None  # when this process began its first step, and the steps before it

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Drop rows of steps that are about to be done again, and draw the bar."""
        if not state.is_world_process_zero:
            return
        self.log.rewind(state.global_step)
        self.tokens, self.start = logged(state, "tokens"), None
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.stage.name,
            unit="step",
            file=sys.stderr,
            disable=None,
            leave=False,
            dynamic_ncols=True,
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock: what stands before the first step (a validation) is no step's time."""
        if self.start is None:
            self.clock = time.perf_counter()
            self.start = self.clock, state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar; the last step is always logged. Stops where an interrupt got lost (in a bar's destructor)."""
        raise_if_stopped()
        if self.bar is not None:
            self.bar.update(1)
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One row and one line."""
        if self.bar is None or not logs or "loss" not in logs:
            return
        now = time.perf_counter()
        seconds, tokens = max(now - self.clock, LEAST_SECONDS), logs["tokens"] - self.tokens
        self.clock, self.tokens = now, logs["tokens"]
        row = logs | {
            "step": state.global_step,
            "seconds": seconds,
            "tokens_per_s": tokens / seconds,
            "peak_mib": peak_memory() / 2**20,
        }
        self.log.append(row)
        with self.bar.external_write_mode(file=sys.stderr):
            self.say(progress_line(self.stage, row, state.max_steps, self._seconds_left(now, state)))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def _seconds_left(self, now: float, state: Any) -> float:
        """By the mean time of the steps so far, validations and checkpoints between them included."""
        begun, before = self.start if self.start is not None else (now, state.global_step)
        return (now - begun) / max(state.global_step - before, 1) * (state.max_steps - state.global_step)


def progress_line(stage: Stage, row: dict[str, Any], steps: int, seconds_left: float) -> str:
    """What an interval's row says on a terminal: `KL` where the stage has that of temperature 1, else `loss`."""
    weights = stage.weights
    shown = "logits" if "logits" in weights and stage.temperature == 1 else "loss"
    others = [name for name in LOSSES if name in row and name != shown and len(weights) > 1]
    parts = "".join(f" {name} {row[name]:.4g}" for name in others)
    return (
        f"stage {stage.number} {stage.name}: step {row['step']}/{steps} {row['tokens']:,.0f} tokens "
        f"{'KL' if shown == 'logits' else shown} {row[shown]:.4g}{parts} {row['tokens_per_s']:,.0f} tokens/s "
        f"{duration(seconds_left)} left"
    )


class EarlyStop(TrainerCallback):
    """Ends a stage by its stop rule; looks at what was logged only, so a resumed run decides alike."""

    def __init__(self, stop: Stop):
        self.stop = stop

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare the best loss of the last `patience` intervals with the best before them."""
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if stalled(losses, self.stop):
            control.should_training_stop = True


def stalled(losses: list[float], stop: Stop) -> bool:
    """Whether the last `patience` losses brought no improvement of the share `min_improvement`."""
    if len(losses) <= stop.patience:
        return False
    before, since = min(losses[: -stop.patience]), min(losses[-stop.patience :])
    return since > before * (1 - stop.min_improvement)


def logged(state: Any, name: str) -> float:
    """The value of `name` in the last entry of a Trainer's history that has it, else 0."""
    return next((float(entry[name]) for entry in reversed(state.log_history) if name in entry), 0.0)


def peak_memory() -> int:
    """Most bytes this process has used so far: of the accelerator where there is one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()
