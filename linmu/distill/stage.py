"""One stage: the student is prepared, trained from its start or last checkpoint, and handed back plain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from peft.tuners.lora import LoraModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from linmu.distill.batches import LengthBuckets, SampleDataset
from linmu.distill.checkpoints import last_checkpoint
from linmu.distill.groups import set_trainable
from linmu.distill.logs import TRAINING_COLUMNS, VALIDATION_COLUMNS, CsvLog, EarlyStop, TrainingLog
from linmu.distill.lora import adapted_weights, add_adapters, merge_adapters
from linmu.distill.objective import Objective
from linmu.distill.pair import own_memory, share_weights
from linmu.distill.plots import plot_stage
from linmu.distill.recipe import Recipe, Stage
from linmu.distill.report import StageReport
from linmu.distill.signals import Needs
from linmu.distill.sources import Sources
from linmu.distill.steps import Share, step_loader
from linmu.distill.teacher_cache import CachedTeacher
from linmu.distill.trainer import DistillTrainer, training_arguments
from linmu.distill.validation import Distance, Validation, measure
from linmu.distill.window_dropout import set_window_off
from linmu.model.folders import load_student

TRAINING_LOG, VALIDATION_LOG = "training.csv", "validation.csv"
CURVES = "curves.png"


@dataclass(frozen=True)
class StageRun:
    """What all stages of a run share; `check` are the validation samples or None."""

    recipe: Recipe
    sources: Sources
    data: SampleDataset
    check: SampleDataset | None
    collate: Callable[[list], dict[str, Any]]
    seed: int
    bf16: bool
    say: Callable[[str], None]


def run_stage(
    run: StageRun, stage: Stage, student: PreTrainedModel, source: Path, folder: Path, resume: bool
) -> tuple[StageReport, PreTrainedModel]:
    """Train the student of the folder `source`; returns the report and the trained student without adapters.

    Logs and checkpoints go to `folder`; with `resume`, from the last checkpoint there. `student` is used up. With FSDP
    only the main process gets the trained weights. Raises CheckFailed when the loss is not finite, InputError for a
    checkpoint of another run.
    """
    started, state = time.perf_counter(), PartialState()
    share = Share.of(run.recipe.batch_size, run.recipe.micro_batch, state.num_processes, state.process_index)
    adapters = add_adapters(student, stage.lora, run.seed) if stage.lora is not None else None
    trainable = set_trainable(student, stage.train)
    if run.recipe.gradient_checkpointing:
        student.activation_checkpointing_enable()
    if not _sharded():  # parts share no memory with anything
        _save_memory(run.sources, student)
    weights = sum(item.parameter.numel() for item in trainable)
    run.say(f"stage {stage.number} {stage.name}: {weights / 1e6:.3g} M weights trained, {stage.steps} steps")
    trainer = _trainer(run, stage, student, folder, share, trainable)
    checkpoint = last_checkpoint(folder) if resume else None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    set_window_off(student, None)  # the last batch's lots are not the next user's
    if trainer.is_fsdp_enabled:
        student, adapters = _gathered(run, stage, trainer, source)
    if adapters is not None:
        if run.sources.teacher is not None:
            own_memory(adapted_weights(adapters), run.sources.teacher)  # merging changes weights in place
        merge_adapters(adapters)
    if state.is_main_process:
        _draw(run, stage, folder)
    return _report(stage, folder, trainer, time.perf_counter() - started), student


def _sharded() -> bool:
    """Whether the launcher asks for FSDP."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP")


def _save_memory(sources: Sources, student: PreTrainedModel) -> None:
    """One copy of what teacher, student and the reader of a cache have in common."""
    if sources.teacher is not None:
        share_weights(student, sources.teacher)
    for source in (sources.train, sources.check):
        if isinstance(source, CachedTeacher):
            source.student = student


def _trainer(run, stage, student, folder, share, trainable) -> DistillTrainer:
    recipe, cpu = run.recipe, not torch.cuda.is_available()
    seed = run.seed + recipe.stages.index(stage)  # each stage its own order of samples
    arguments = training_arguments(
        stage,
        recipe,
        share,
        folder,
        seed,
        run.bf16,
        use_cpu=cpu,
        # a batch of text alone leaves backward scans and windows unused
        ddp_find_unused_parameters=not student.linmu_family.text_only,
    )
    # sharded gradients are added up in one piece: processes must have gradients for the same weights, also for text
    objective = Objective(student, stage, recipe.gradient_checkpointing, touch_all=_sharded())
    loader = step_loader(run.data, run.collate, share, stage.steps, seed, recipe.workers)
    callbacks: list[Any] = [TrainingLog(stage, CsvLog(folder / TRAINING_LOG, TRAINING_COLUMNS), run.say)]
    if stage.stop is not None:
        callbacks.append(EarlyStop(stage.stop))
    needs = Needs.of(stage, recipe.top_k)
    trainer = DistillTrainer(objective, run.sources.train, arguments, loader, trainable, needs, callbacks)
    if run.check is not None:
        log = CsvLog(folder / VALIDATION_LOG, VALIDATION_COLUMNS)
        measured = partial(_validate, run, trainer, share)
        trainer.add_callback(Validation(measured, recipe.validate_every, log, lambda: trainer.tokens, run.say))
    return trainer


def _validate(run: StageRun, trainer: DistillTrainer, share: Share) -> Distance:
    """Every process measures its batches; those that have fewer repeat one without counting it."""
    assert run.check is not None
    accelerator = trainer.accelerator
    batches = list(LengthBuckets(run.check.lengths, share.micro, trainer.args.seed))
    mine = batches[share.rank :: share.world]
    repeated = -(-len(batches) // share.world) - len(mine)  # sharded models need as many passes everywhere
    loader = DataLoader(run.check, batch_sampler=mine + batches[:1] * repeated, collate_fn=run.collate)

    def on_device() -> Iterator[tuple[dict[str, Any], bool]]:
        for number, batch in enumerate(loader):
            moved = {name: x.to(accelerator.device) if isinstance(x, Tensor) else x for name, x in batch.items()}
            yield moved, number < len(mine)

    def add_up(sums: Tensor) -> Tensor:
        return sums if share.world == 1 else accelerator.reduce(sums.to(accelerator.device), "sum").cpu()

    with accelerator.autocast():
        # not the data-parallel wrapper, which would wait for gradients; with FSDP `model` is the sharded one
        return measure(trainer.model, run.sources.check, run.sources.check_needs, on_device(), add_up)


def _gathered(
    run: StageRun, stage: Stage, trainer: DistillTrainer, source: Path
) -> tuple[PreTrainedModel, LoraModel | None]:
    """A whole student, adapters and all, from the parts of all processes (weights on the main process only)."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    student = load_student(source)
    adapters = add_adapters(student, stage.lora, run.seed) if stage.lora is not None else None
    if PartialState().is_main_process:
        student.load_state_dict({name.removeprefix("student."): value for name, value in state.items()})
    return student, adapters


def _draw(run: StageRun, stage: Stage, folder: Path) -> None:
    validation = folder / VALIDATION_LOG if run.check is not None else None
    title = f"stage {stage.number} {stage.name}"
    if not plot_stage(folder / TRAINING_LOG, validation, folder / CURVES, title):
        run.say("no curves: matplotlib is not installed (pip install 'linmu[bench]')")


def _report(stage: Stage, folder: Path, trainer: DistillTrainer, seconds: float) -> StageReport:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    distances = [item.last for item in trainer.callback_handler.callbacks if isinstance(item, Validation)]
    return StageReport(
        stage.number,
        stage.name,
        trainer.state.global_step,
        losses[0],
        losses[-1],
        seconds,
        distances[0] if distances else None,
    )
