"""Where a run's signals come from: the teacher in memory, or its outputs on disk."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from linmu.distill.batches import SampleDataset
from linmu.distill.pair import check_pair, load_guide
from linmu.distill.recipe import Recipe, Stage
from linmu.distill.signals import LiveTeacher, Needs, SignalSource
from linmu.distill.teacher_cache import CachedTeacher, CacheKey, TeacherCache, front_fingerprint
from linmu.processing.encode import processor_fingerprint

CHECK_NEEDS = Needs(hidden=True, logits=True, decoder=True)


@dataclass(frozen=True)
class Sources:
    """Signals on the training data and on the validation data; the teacher where it is in memory."""

    train: SignalSource
    check: SignalSource
    check_needs: Needs
    teacher: PreTrainedModel | None = None


@dataclass(frozen=True)
class Setting:
    """What sources are made from: folders and hashes, data sets (check: validation or None) and how to collate them."""

    teacher: Path
    teacher_hash: str
    data: SampleDataset
    check: SampleDataset | None
    collate: Callable[[list], dict[str, Any]]
    bf16: bool


def live_sources(setting: Setting, student: PreTrainedModel) -> Sources:
    """The teacher in memory; raises InputError when the student is not its own."""
    guide = load_guide(setting.teacher, setting.bf16)
    check_pair(student, guide)
    source = LiveTeacher(guide.to(student.device))
    return Sources(source, source, CHECK_NEEDS, source.teacher)


def cached_sources(
    setting: Setting,
    student: PreTrainedModel,
    root: Path,
    recipe: Recipe,
    stages: Sequence[Stage],
    say: Callable[[str], None],
) -> Sources:
    """The teacher's outputs in `root`, made first where they are missing; the teacher is in memory only meanwhile."""
    front, check_needs = front_fingerprint(student), replace(CHECK_NEEDS, top_k=recipe.top_k)
    caches = [_cache(setting, data, root, front) for data in (setting.data, setting.check) if data is not None]
    needs_of_caches = [[Needs.of(stage, recipe.top_k) for stage in stages], [check_needs]]
    plans = [(cache, needs) for cache, needs in zip(caches, needs_of_caches, strict=False) if cache.missing(needs)]
    if plans:
        _build(setting, student, plans, say)
    train = CachedTeacher(caches[0], student)
    check = CachedTeacher(caches[1], student) if len(caches) > 1 else train
    return Sources(train, check, check_needs)


def _cache(setting: Setting, data: SampleDataset, root: Path, front: str) -> TeacherCache:
    precision = "bfloat16" if setting.bf16 else "float32"
    processor = processor_fingerprint(data.processor)
    key = CacheKey(setting.teacher_hash, data.folder.fingerprint, processor, data.loss_on, precision)
    return TeacherCache(root, key, data, front)


def _build(setting: Setting, student: PreTrainedModel, plans: list, say: Callable[[str], None]) -> None:
    state, guide = PartialState(), load_guide(setting.teacher, setting.bf16)
    check_pair(student, guide)
    guide.to(student.device)
    for cache, needs in plans:
        size = cache.forecast(guide.config, needs) / 2**30
        say(f"teacher outputs on {len(cache.data)} samples: at most {size:.3g} GiB in {cache.folder}")
        with torch.autocast(student.device.type, torch.bfloat16, enabled=setting.bf16):
            cache.build(guide, needs, setting.collate, state.process_index, state.num_processes, _lines(say))
    state.wait_for_everyone()
    del guide
    gc.collect()


def _lines(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """A line for every tenth of the shards."""

    def progress(done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            say(f"teacher outputs: {done} of {total} shards")

    return progress
