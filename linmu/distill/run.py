"""One distillation run: folders in, a trained student folder out. The typed function under `linmu distill`."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from linmu.distill.answers import ANSWER_TOKENS, AnsweringTeacher, AnswerRules, answer_missing, open_data
from linmu.distill.batches import SampleDataset
from linmu.distill.logs import peak_memory
from linmu.distill.out_folder import OutFolder
from linmu.distill.pair import check_folders
from linmu.distill.recipe import NUMBERS, Recipe, Stage, load_recipe
from linmu.distill.report import DistillReport, StageReport
from linmu.distill.sources import Setting, cached_sources, live_sources
from linmu.distill.stage import StageRun, run_stage
from linmu.errors import InputError
from linmu.files.atomic import write_bytes
from linmu.files.separate import require_separate
from linmu.formats.weights_hash import student_weights_hash
from linmu.layout import PromptRules
from linmu.model.batch import collate
from linmu.model.folders import load_student
from linmu.model.modeling import teacher_config
from linmu.processing.encode import model_processor, pad_token_id
from linmu.version import __version__

STAGE_REPORT = "report.json"


def distill(
    student: Path | str,
    teacher: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    recipe: Recipe | str | Path = "small",
    stages: Sequence[int] = NUMBERS,
    resume: bool = False,
    seed: int = 0,
    bf16: bool | None = None,
    validation: Path | str | None = None,
    cache: Path | str | None = None,
    answers: str = "data",
    answer_tokens: int = ANSWER_TOKENS,
    say: Callable[[str], None] | None = None,
) -> DistillReport:
    """Train the student of folder `student` to answer like `teacher` on the data folder `data`; write `out`.

    recipe: a Recipe, "small", "large" or a YAML file; stages: numbers of the stages to run, each from the nearest
    finished one before it in `out` (with `resume`), else from `student`; bf16: mixed precision (None: on accelerators
    that have it); validation: a data folder to measure on; cache: a folder for the teacher's outputs, which are made
    there first, so that the teacher is not in memory while the student trains; answers: where missing ones come from:
    "data" (none may be missing), or the teacher gives them before training starts, "greedy" or "sampled" at temperature
    1, of at most `answer_tokens` tokens; say: gets a line of text now and then, on the main process (default: stderr).
    Call it in every process of `accelerate launch` or torchrun. Raises InputError for folders that do not fit or an
    `out` in use, CheckFailed when the loss is not finite.
    """
    started, state = time.perf_counter(), PartialState(cpu=not torch.cuda.is_available())
    student, teacher, out = Path(student), Path(teacher), Path(out)
    require_separate(out, student, teacher, data, *(() if validation is None else (validation,)))
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    chosen = _chosen_stages(recipe, stages)
    say = (say or _to_stderr) if state.is_main_process else _silent
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() if bf16 is None else bf16
    rules = AnswerRules(answers, answer_tokens, seed, bf16, recipe.max_tokens)
    check_folders(student, teacher)
    opened = [open_data(path, answers) for path in (data, validation) if path is not None]
    hashes = {"student": student_weights_hash(student), "teacher": student_weights_hash(teacher)}
    identity = {
        "linmu": __version__,
        "recipe": recipe.to_json(),
        "seed": seed,
        "bf16": bf16,
        **hashes,
        "data": opened[0].fingerprint,
        "validation": opened[1].fingerprint if validation is not None else None,
        "answers": answers,
        "answer_tokens": None if answers == "data" else answer_tokens,
    }
    target = OutFolder(out, recipe)
    with target.locked() if state.is_main_process else nullcontext():
        with state.main_process_first():
            target.begin(identity, resume or not state.is_main_process)
        processor = model_processor(student)
        answering = AnsweringTeacher(teacher, hashes["teacher"], processor, rules)
        opened = answer_missing(opened, target.training, answering, say)
        folder, check = opened[0], opened[1] if validation is not None else None
        model = load_student(student).to(state.device)
        setting = _setting(teacher, hashes["teacher"], model, processor, folder, check, recipe, target.training, bf16)
        processes = f"{state.num_processes} process" + "es" * (state.num_processes > 1)
        say(f"{len(folder)} samples, longest {setting.data.lengths.tokens.max()} tokens, {processes}")
        if cache is None:
            sources = live_sources(setting, model)
        else:
            sources = cached_sources(setting, model, Path(cache), recipe, chosen, say)
        run = StageRun(recipe, sources, setting.data, setting.check, setting.collate, seed, bf16, say)
        reports = _run_stages(run, target, chosen, model, student, resume)
        seconds, peak = time.perf_counter() - started, peak_memory()
        report = DistillReport(student.name, teacher.name, len(folder), reports, seconds, peak)
        if state.is_main_process:
            _publish(target, student, report)
        state.wait_for_everyone()
    return report


def _chosen_stages(recipe: Recipe, numbers: Sequence[int]) -> list[Stage]:
    stages = [stage for stage in recipe.stages if stage.number in numbers]
    if not stages:
        raise InputError(
            "no stage to run",
            got=", ".join(map(str, numbers)) or "none",
            expected="some of " + ", ".join(sorted({str(s.number) for s in recipe.stages})),
        )
    return stages


def _setting(teacher, teacher_hash, model, processor, folder, check, recipe, lengths: Path, bf16) -> Setting:
    """Data sets as the student's processor sees them, measured, and how to collate them."""
    rules = None if model.linmu_family.text_only else PromptRules.from_config(teacher_config(model.config))
    options: dict[str, Any] = {"loss_on": recipe.loss_on, "max_tokens": recipe.max_tokens, "cache": lengths}
    data = SampleDataset(folder, processor, **options)
    held_out = SampleDataset(check, processor, **options) if check is not None else None
    with PartialState().main_process_first():  # the first process measures the lengths, the others read them
        _ = data.lengths, held_out.lengths if held_out is not None else None
    together = partial(collate, rules=rules, pad_id=pad_token_id(processor))
    return Setting(teacher, teacher_hash, data, held_out, together, bf16)


def _run_stages(run: StageRun, target: OutFolder, chosen: list[Stage], model, source: Path, resume: bool):
    """Every chosen stage that is not finished; `model` is the student of `source`. The reports of all finished ones."""
    state, fresh = PartialState(), True
    for stage in chosen:
        if state.is_main_process:
            target.check_start(stage)
        if target.finished(stage):
            run.say(f"stage {stage.number} {stage.name}: done before")
            continue
        start = target.start_of(stage) or source
        if not fresh or start != source:
            model = None
            gc.collect()  # a Trainer refers to itself: its optimizer would stay until much later
            model = load_student(start).to(state.device)
        report, model = run_stage(run, stage, model, start, target.stage(stage), resume)
        if state.is_main_process:
            write_bytes(target.stage(stage) / STAGE_REPORT, (json.dumps(report.to_json(), indent=2) + "\n").encode())
            target.save_stage(stage, model, source)
        state.wait_for_everyone()
        fresh = False  # a trained model may share weights with the teacher or be in parts: the next stage loads its own
    done = [stage for stage in run.recipe.stages if target.finished(stage)]
    return tuple(StageReport.from_json(json.loads((target.stage(s) / STAGE_REPORT).read_text("utf-8"))) for s in done)


def _publish(target: OutFolder, source: Path, report: DistillReport) -> None:
    """The last finished stage as a student, in the type of the student given."""
    last = [stage for stage in target.recipe.stages if target.finished(stage)][-1]
    result = load_student(target.student(last), _stored_type(source))
    target.publish(result, source, report.to_json())


def _stored_type(source: Path) -> torch.dtype:
    from safetensors import safe_open

    path = next(source.glob("*.safetensors"))
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(next(iter(file.keys()))).dtype


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return PartialState().is_main_process


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    return None
