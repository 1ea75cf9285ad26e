"""Training a small vision-language model on conversations made as they are needed; shared by the example teachers.

Every micro-batch is made from (seed, index), so that a run can be stopped and resumed, and no sample is seen twice.
Conversations of several turns share a picture: the vision tower's work then serves several answers.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from examples.questions.content import COLORS, LETTERS, SHAPES
from examples.questions.drawing import SIDE, Mark
from examples.questions.stills import Scene
from linmu.processing import Processor
from linmu.processing.convert import write_processor

TURNS = 4
CONTENTS = ("", *SHAPES, *"0123456789", *LETTERS)  # what a vision token can stand for; "": nothing's centre
UNSURE = -100
EMPTY_WEIGHT, MARKS_WEIGHT = 0.2, 0.3


def conversation(scene: Scene, turns: int) -> list[dict]:
    """Questions and answers about one scene; its media stand in the first message."""
    messages: list[dict] = []
    for index, question in enumerate(scene.questions[:turns]):
        media = [] if index else [{"type": "image"}] * len(scene.images)
        media += [{"type": "video"}] if scene.frames is not None and not index else []
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": question.prompt}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


def cells(marks: tuple[Mark, ...], grid: int) -> np.ndarray:
    """What has its centre in each vision token's cell: indices [grid*grid, 2] into CONTENTS and COLORS."""
    found = np.zeros((grid * grid, 2), np.int64)
    found[:, 1] = UNSURE
    for mark in marks:
        row, column = (min(max(int(v * grid / SIDE), 0), grid - 1) for v in (mark.y, mark.x))
        cell = row * grid + column
        crowded = found[cell, 0] != 0
        found[cell] = UNSURE if crowded else CONTENTS.index(mark.content)
        found[cell, 1] = list(COLORS).index(mark.color) if mark.color and not crowded else UNSURE
    return found


class Conversations(Dataset):
    """Micro-batch i of `count`: the scenes of `make(i)` as padded conversations; the model is that of `folder`.

    "cells" [pictures, tokens, 2] is there when every scene with pictures has marks.
    """

    def __init__(self, folder: Path, count: int, make: Callable[[int], list[Scene]]):
        processor_folder = folder / "processor"
        processor_folder.mkdir(exist_ok=True)
        write_processor(folder, processor_folder)
        self.processor = Processor.from_folder(processor_folder)
        self.count, self.make = count, make
        tokenizer = self.processor.tokenizer
        self.pad, self.end = tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<end_of_utterance>")
        self.grid = math.isqrt(json.loads((folder / "processor_config.json").read_text())["image_seq_len"])
        self.header = tokenizer.encode("\nAssistant:", add_special_tokens=False).ids

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scenes = self.make(index)
        rows = [self._encode(scene) for scene in scenes]
        count, width = len(rows), max(len(ids) for ids, _, _ in rows)
        ids = torch.full((count, width), self.pad)
        labels = torch.full((count, width), -100)
        for row, (tokens, mask, _) in enumerate(rows):
            ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)][mask] = tokens[mask]
        batch = {"input_ids": ids, "labels": labels}  # padding on the right: a causal model needs no mask
        most = max((pixels for _, _, pixels in rows), key=len)
        if len(most):
            batch["pixel_values"] = torch.zeros(count, *most.shape)  # the model drops all-zero pictures
            for row, (_, _, pixels) in enumerate(rows):
                batch["pixel_values"][row, : len(pixels)] = pixels
            if all(len(scene.marks) == len(pixels) for scene, (*_, pixels) in zip(scenes, rows, strict=True)):
                found = [cells(marks, self.grid) for scene in scenes for marks in scene.marks]
                batch["cells"] = torch.from_numpy(np.stack(found))
        return batch

    def _encode(self, scene: Scene) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids [S], which of them are answers [S], pixels [n,3,SIDE,SIDE]."""
        clip = {} if scene.frames is None else {"video": scene.frames, "video_fps": 1.0}
        inputs = self.processor.encode(conversation(scene, TURNS), scene.images, add_generation_prompt=False, **clip)
        ids = inputs.input_ids.tolist()
        mask, size = torch.zeros(len(ids), dtype=torch.bool), len(self.header)
        for start in range(len(ids)):
            if ids[start : start + size] == self.header:
                mask[start + size : ids.index(self.end, start) + 1] = True
        pixels = inputs.vision_calls[0]["pixel_values"] if inputs.media else np.zeros((0, 3, 1, 1), np.float32)
        return torch.from_numpy(inputs.input_ids.astype(np.int64)), mask, torch.from_numpy(pixels)


class MarkedTrainer(hf.Trainer):
    """Trainer with a second loss: what stands at each vision token, read from the connector's output.

    It gives the vision tower a direct signal, long before the decoder has learned to look things up in it.
    """

    def __init__(self, model: hf.PreTrainedModel, **others):
        super().__init__(model=model, **others)
        self.seen: list[Tensor] = []
        model.model.connector.register_forward_hook(lambda _, __, output: self.seen.append(output))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The answers' loss, and the marks' where the batch has them."""
        found = inputs.pop("cells", None)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if found is not None:
            logits = self.model.marks(self.seen[-1].float())
            weight = torch.ones(len(CONTENTS), device=logits.device)
            weight[0] = EMPTY_WEIGHT
            content, color = logits.split([len(CONTENTS), len(COLORS)], dim=-1)
            extra = cross_entropy(content.flatten(0, -2), found[..., 0].flatten(), weight, ignore_index=UNSURE)
            if (found[..., 1] != UNSURE).any():
                extra = extra + cross_entropy(color.flatten(0, -2), found[..., 1].flatten(), ignore_index=UNSURE)
            loss = loss + MARKS_WEIGHT * extra / self.args.gradient_accumulation_steps
        self.seen.clear()
        return loss


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, AdamW for everything else; one schedule drives both."""

    def __init__(self, model: torch.nn.Module, learning_rate: float, weight_decay: float):
        named = dict(model.named_parameters())
        inner = {n for n, p in named.items() if ".layers." in n and p.ndim == 2}
        matrices, rest = [named[n] for n in sorted(inner)], [p for n, p in named.items() if n not in inner]
        options = {"lr": learning_rate, "weight_decay": weight_decay}
        self.parts = [
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options),
            torch.optim.AdamW(rest, betas=(0.9, 0.98), **options),
        ]
        super().__init__([*matrices, *rest], options)
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        """One step of both."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """Both states."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict) -> None:
        """Load both states."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class Curve(hf.TrainerCallback):
    """One CSV line an interval, and a line on the terminal."""

    def __init__(self, path: Path):
        before = float(path.read_text().splitlines()[-1].split(",")[1]) if path.exists() else 0.0
        self.path, self.started = path, time.perf_counter() - before

    def on_log(self, arguments, state, control, logs=None, **_) -> None:
        """Append step, seconds, loss and learning rate."""
        if logs and "loss" in logs:
            new = not self.path.exists()
            with self.path.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(["step", "seconds", "loss", "learning_rate"])
                seconds = round(time.perf_counter() - self.started, 1)
                writer.writerow([state.global_step, seconds, logs["loss"], logs["learning_rate"]])


def train(
    model: hf.PreTrainedModel,
    data: Conversations,
    out: Path,
    steps: int,
    passes: int,
    learning_rate: float,
    rate: Callable[[int], float],
    seed: int = 0,
    resume: bool = False,
) -> None:
    """`steps` optimiser steps of `passes` micro-batches each, in bfloat16, on `model`.

    out gets checkpoints, curve.csv and, in the end, the weights in float16; rate: share of the learning rate at a step.
    """
    model.marks = nn.Linear(model.config.text_config.hidden_size, len(CONTENTS) + len(COLORS))
    model.set_attn_implementation("eager")  # twice as fast as the fused kernel's backward at these lengths on a CPU
    arguments = hf.TrainingArguments(
        output_dir=str(out / "training"),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=passes,
        learning_rate=learning_rate,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_steps=200,
        save_total_limit=2,
        dataloader_num_workers=1,
        report_to=[],
        seed=seed,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )
    optimizer = MuonAndAdamW(model, learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    trainer = MarkedTrainer(
        model=model,
        optimizers=(optimizer, schedule),
        args=arguments,
        train_dataset=data,
        data_collator=lambda batches: batches[0],
        callbacks=[Curve(out / "curve.csv")],
    )
    trainer.train(resume_from_checkpoint=resume or None)
    del model.marks
    model.half().save_pretrained(out)
