"""Training of the real vision-language model: an aligned projector, then all of it on answers."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from assemble_llava import SHORT_TEMPLATE, assemble
from real_vlm_align import align
from real_vlm_batches import Rows, micro_batches, of_step
from real_vlm_features import Features, open_features
from real_vlm_model import Masters, measured, save_trained, summed_loss
from real_vlm_scenes import PICTURE

from linmu.files.atomic import atomic_folder, write_bytes

LAYERS = [-7, -1]  # hidden states of the tower that the projector reads: halfway, where letters are, and the last

Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """How long and how fast. steps: of `batch` rounds each; align: batches of patches before them.

    frozen: first steps, with the language model as it was; thaw: share of the steps after which the tower is trained
    too (1: never) and no longer read from the cache; projector, decoder, tower: peak learning rates; every: steps
    between measurements on `measured` test rounds, and between checkpoints.
    """

    steps: int = 1200
    batch: int = 32
    frozen: int = 40
    projector: float = 1e-3
    decoder: float = 2e-4
    tower: float = 5e-5
    thaw: float = 0.1
    align: int = 1500
    every: int = 50
    measured: int = 160
    seed: int = 0


def make_teacher(folder: Path) -> None:
    """Assemble DINOv2-small and SmolLM2-135M for small pictures and short prompts, unless it is there."""
    if not (folder / "processor_config.json").exists():
        assemble(folder, PICTURE, LAYERS, SHORT_TEMPLATE)


def share(step: int, start: int, steps: int) -> float:
    """Share of the peak learning rate: nothing before `start`, warm-up, then a cosine to a twentieth."""
    if step < start:
        return 0.0
    warm = max(1, (steps - start) // 40)
    return min(
        (step - start + 1) / warm, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - start) / (steps - start)))
    )


class Run:
    """One training run in a folder: aligned.pt, checkpoint.pt, curve.csv and accuracy.jsonl."""

    def __init__(self, start: Path, out: Path, plan: Training, say: Say):
        self.start, self.out, self.plan, self.say = start, out, plan, say
        self.model = hf.LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32).eval()
        self.model.requires_grad_(False)
        self.rows = Rows(start, self.model.config)
        out.mkdir(parents=True, exist_ok=True)

    def __call__(self, train: Path, test: Path) -> dict[str, float]:
        """All of it, from where it stopped; writes the trained weights to OUT/teacher. Returns the last accuracy."""
        data, held_out = (open_features(folder, self.model, self.start, self.say) for folder in (train, test))
        self._aligned(data)
        inner = self.model.model
        parts = (
            list(inner.multi_modal_projector.parameters()),
            [*inner.language_model.layers.parameters(), *inner.language_model.norm.parameters()],
            list(inner.vision_tower.parameters()),
        )
        rates = (self.plan.projector, self.plan.decoder, self.plan.tower)
        masters = Masters(list(zip(parts, rates, strict=True)))  # before anything is rounded
        model = self.model.bfloat16()
        step, seconds = self._resumed(masters)
        accuracy = self._steps(model, masters, data, held_out, step, seconds)
        save_trained(model, masters, self.out / "weights")
        return accuracy

    def publish(self, folder: Path) -> None:
        """Put the trained weights into `folder`, with the assembled teacher's tokenizer, processor and settings."""
        with atomic_folder(folder, overwrite=True) as temporary:
            for file in self.start.iterdir():
                if file.suffix != ".safetensors":
                    shutil.copyfile(file, temporary / file.name)
            for file in (self.out / "weights").iterdir():
                shutil.copyfile(file, temporary / file.name)

    def _aligned(self, data: Features) -> None:
        file = self.out / "aligned.pt"
        projector = self.model.model.multi_modal_projector
        if not file.exists():
            projector.requires_grad_(True)
            align(self.model, self.rows.tokenizer, data, self.plan.align, self.plan.seed, self.say)
            _save(projector.state_dict(), file)
        projector.load_state_dict(torch.load(file, weights_only=True))

    def _resumed(self, masters: Masters) -> tuple[int, float]:
        file = self.out / "checkpoint.pt"
        if not file.exists():
            return 0, 0.0
        saved = torch.load(file, weights_only=True)
        masters.load(saved["masters"])
        curve = self.out / "curve.csv"
        if curve.exists():  # without what was done after the checkpoint: it is done again
            write_bytes(curve, "".join(curve.read_text().splitlines(True)[: saved["step"] + 1]).encode())
        self.say(f"going on after step {saved['step']}")
        return saved["step"], saved["seconds"]

    def _steps(self, model, masters: Masters, data: Features, held_out: Features, step: int, before: float):
        plan, started, first = self.plan, time.perf_counter(), step
        accuracy: dict[str, float] = {}
        starts = (0, plan.frozen, round(plan.thaw * plan.steps))
        while step < plan.steps:
            live = step >= starts[2]
            for parameters, start in zip(masters.live, starts, strict=True):
                for parameter in parameters:
                    parameter.requires_grad_(step >= start)
            began = time.perf_counter()
            rows = [self.rows(data.rounds[i]) for i in of_step(step, len(data.rounds), plan.batch, plan.seed)]
            tokens = sum(int((row.labels != -100).sum()) for row in rows)
            questions = sum(int(row.segments.max()) for row in rows)
            loss = 0.0
            for batch in micro_batches(rows, data, live):
                summed = summed_loss(model, batch)
                summed.backward()
                loss += float(summed.detach())
            norm = masters.step([share(step, start, plan.steps) for start in starts], 1 / tokens)
            step += 1
            spent = time.perf_counter() - began
            seconds = before + time.perf_counter() - started
            left = (time.perf_counter() - started) / (step - first) * (plan.steps - step) / 3600
            self._log(step, seconds, loss / tokens, norm, questions / spent, len(rows) / spent, left)
            if step % plan.every == 0 or step == plan.steps:
                _save({"step": step, "seconds": seconds, "masters": masters.state()}, self.out / "checkpoint.pt")
                accuracy = self._measure(model, held_out, step)
        return accuracy or self._measure(model, held_out, step)

    def _measure(self, model, held_out: Features, step: int) -> dict[str, float]:
        live = step >= round(self.plan.thaw * self.plan.steps)
        accuracy, loss = measured(model, self.rows, held_out, self.plan.measured, live)
        with (self.out / "accuracy.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": round(loss, 4), **accuracy}) + "\n")
        self.say(
            f"step {step}: held-out loss {loss:.3f}, " + ", ".join(f"{k} {100 * v:.0f}" for k, v in accuracy.items())
        )
        return accuracy

    def _log(self, step: int, seconds: float, loss: float, norm: float, speed: float, rounds: float, left: float):
        file = self.out / "curve.csv"
        new = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["step", "seconds", "loss", "gradient_norm", "samples_per_s"])
            writer.writerow([step, round(seconds, 1), round(loss, 4), round(norm, 3), round(speed, 2)])
        if step % 5 == 0:
            self.say(
                f"step {step}/{self.plan.steps}: loss {loss:.3f}, {speed:.1f} samples/s ({rounds:.2f} pictures/s), "
                f"{left:.1f} hours left"
            )


def _save(content: dict, file: Path) -> None:
    """Replace a file in one go: a run that is killed meanwhile keeps the old one."""
    temporary = file.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, file)
