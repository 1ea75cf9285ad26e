"""transformers' Trainer for one stage: what it must do differently for distillation, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from linmu.distill.checkpoints import PARTIAL, clear_partial, last_checkpoint, load_trained, publish, save_trained
from linmu.distill.groups import Trainable, optimizer_groups
from linmu.distill.logs import logged
from linmu.distill.objective import Objective
from linmu.distill.recipe import Recipe, Stage
from linmu.distill.signals import IGNORE, Needs, SignalSource
from linmu.distill.steps import Share
from linmu.distill.window_dropout import left_out
from linmu.errors import CheckFailed

KEPT_CHECKPOINTS = 2
SCHEDULERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def training_arguments(stage: Stage, recipe: Recipe, share: Share, folder: Path, seed: int, bf16: bool, **extra: Any):
    """The Trainer's settings of a stage."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=stage.steps,
        per_device_train_batch_size=share.micro,
        gradient_accumulation_steps=share.passes,
        learning_rate=max(stage.train.values()),
        lr_scheduler_type=SCHEDULERS[stage.schedule],
        warmup_steps=round(stage.warmup * stage.steps),
        # 0 = no clipping, but the norm is still computed: a NaN shows in it first
        max_grad_norm=stage.grad_clip or math.inf,
        seed=seed,
        data_seed=seed,
        bf16=bf16,
        logging_steps=recipe.log_every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or stage.steps,
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        **extra,
    )


class DistillTrainer(Trainer):
    """Trains an Objective on batches that come with a teacher's signals.

    `loader` yields the whole stage's passes; losses are divided by the step's counts over all passes and processes,
    so that neither changes the result. Raises CheckFailed at the first step with a loss or gradient that is no number.
    """

    loss_is_scaled_for_ga = True
    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        objective: Objective,
        source: SignalSource,
        args: TrainingArguments,
        loader: DataLoader,
        trainable: list[Trainable],
        needs: Needs,
        callbacks: list[TrainerCallback],
    ):
        super().__init__(model=objective, args=args, train_dataset=loader.dataset, callbacks=callbacks)
        self.remove_callback(PrinterCallback)
        self.source, self.loader, self.trainable, self.needs = source, loader, trainable, needs
        self.stage = objective.stage
        self.folder = Path(args.output_dir)
        self._interval_tokens = 0
        self._parts: dict[str, Tensor] = {}  # sums since the last log
        self._passes: list[tuple[Tensor, list[str]]] = []  # of the step at hand
        self._saving = False

    @property
    def tokens(self) -> int:
        """Tokens of all steps of this stage so far, over all processes."""
        return int(logged(self.state, "tokens")) + self._interval_tokens

    def get_train_dataloader(self) -> DataLoader:
        """The planned passes as they are: they are shared out already."""
        return self.loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the stage's groups."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups = optimizer_groups(self._trainable_of(model), self.stage.weight_decay)
            self.optimizer = cls(groups, **options)
        return self.optimizer

    def _trainable_of(self, model: nn.Module | None) -> list[Trainable]:
        """The trained parameters, as the wrapped model holds them (FSDP puts others in their place)."""
        if model is None or model is self.model:
            return self.trainable
        now = {name.replace("_fsdp_wrapped_module.", ""): p for name, p in model.named_parameters()}
        return [Trainable(i.name, now[f"student.{i.name}"], i.group, i.rate, i.decays) for i in self.trainable]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """[tokens, predicted tokens] of a step over all passes and processes, as this process's share of them."""
        counts = torch.zeros(2, dtype=torch.float64)
        for batch in batch_samples:
            counts[0] += int(batch["attention_mask"].sum())
            counts[1] += int((batch["labels"][:, 1:] != IGNORE).sum())
        counts = counts.float().to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._interval_tokens += int(counts[0])
        self._passes.clear()
        return counts.clamp(min=1) / self.args.world_size

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of one pass; its parts are kept for the log."""
        with self.accelerator.autocast():
            signals = self.source.signals(inputs, self.needs)
        rows = left_out(self.stage, self.state.global_step, inputs["sample_ids"], self.args.seed)
        if rows is not None:
            inputs["window_off"] = rows.to(inputs["input_ids"].device)
        parts = model(inputs, signals, num_items_in_batch)
        loss = parts["loss"]
        for name, value in parts.items():
            if name != "loss":
                self._parts[name] = self._parts.get(name, 0) + value
        self._passes.append((loss.detach(), inputs["sample_ids"]))
        # An infinite loss may have finite gradients; as NaN it reaches every process through them.
        return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm before clipping; stops the run where it is no number, before the optimizer uses it."""
        norm = super()._get_grad_norm(model, grad_norm)
        if not math.isfinite(float(norm)):
            self._stop(float(norm))
        return norm

    def _stop(self, norm: float) -> None:
        """Every process comes here at the same step: gradients are shared."""
        losses = [float(loss) for loss, _ in self._passes]
        every = [name for _, ids in self._passes for name in ids]
        bad = [name for loss, ids in self._passes if not math.isfinite(float(loss)) for name in ids]
        if self.args.world_size > 1:
            bad, every, losses = gather_object(bad), gather_object(every), gather_object(losses)
        checkpoint = last_checkpoint(self.folder)
        raise CheckFailed(
            f"the loss is not finite in stage {self.stage.number} ({self.stage.name}) at step "
            f"{self.state.global_step + 1}",
            got=f"loss {sum(losses):g}, gradient norm {norm:g}; samples of the batch: {', '.join(bad or every)}; "
            f"last good checkpoint: {checkpoint if checkpoint is not None else 'none yet'}",
            fix="look at the samples; or start anew with lower rates or --fp32",
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the parts of the loss, the mean over the interval and all processes, and the tokens so far."""
        if "loss" in logs:
            steps = self.state.global_step - int(logged(self.state, "step"))
            for name, value in self._parts.items():
                mean = self.accelerator.reduce(value.float(), "mean") if self.args.world_size > 1 else value
                logs[name] = float(mean) / steps
            rates = [group["initial_lr"] for group in self.optimizer.param_groups]  # type: ignore[union-attr]
            logs["learning_rate"] *= max(rates) / rates[0]  # the first group's alone says little
            logs["tokens"] = logged(self.state, "tokens") + self._interval_tokens
            self._parts.clear()
            self._interval_tokens = 0
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / PARTIAL) if self._saving else str(self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Written under another name first: a checkpoint that has its name is whole."""
        if self.args.should_save:
            clear_partial(self.folder)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            publish(self.folder, self.state.global_step, KEPT_CHECKPOINTS)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            save_trained(self.accelerator.unwrap_model(self.model), folder, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # every process holds a part of the weights: accelerate wrote and reads them
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_trained(self.model, Path(resume_from_checkpoint))
