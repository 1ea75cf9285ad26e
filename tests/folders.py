"""Tiny teachers and students as folders on disk, as users have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from linmu.config import MMateConfig
from linmu.conversion.folder import convert_folder
from linmu.model.folders import load_student
from tests.model.students import SMALL, unsettle
from tests.paths import ROOT
from tests.tiny import tiny_model, tiny_processor

torch.set_num_threads(1)  # tiny tensors: more threads wait for each other, ten times longer on busy cores


def teacher_folder(family: str, folder: Path) -> Path:
    """A tiny teacher with tokenizer, processor and chat template."""
    model, tokenizer = tiny_model(family)
    model.save_pretrained(folder)
    tiny_processor(family, tokenizer).save_pretrained(folder)
    return folder


def student_folder(family: str, root: Path, **settings) -> Path:
    """The student of a tiny teacher, its new parameters noisy."""
    folder = root / "student"
    convert_folder(teacher_folder(family, root / "teacher"), folder, mmate=MMateConfig(**{**SMALL, **settings}))
    student = load_student(folder)
    unsettle(student)
    student.save_pretrained(folder, save_original_format=False)
    return folder


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from linmu.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_on_a_small_disk(limit: int, *arguments: str) -> subprocess.CompletedProcess:
    """`linmu` in a process that cannot write files of more than `limit` bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), *arguments], capture_output=True, text=True, env=environment
    )
