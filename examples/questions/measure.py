"""Demo data sets on disk, and accuracy on them: what training, ablations and the model card share."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from examples.questions.generate import TASKS, lines, samples
from linmu.evaluation.answerers import Engine
from linmu.evaluation.report import Evaluation
from linmu.formats.data_folder import write_data_folder
from linmu.tools.evaluate import evaluate

TEST_SEEDS = (101, 102, 103, 104, 105)
BATCH_SIZE = 32
# What a student is slow to learn is asked more often in training.
TRAINING_TASKS = (*TASKS, "word", "word", "word", "number", "order", "position")


def make_sets(
    root: Path, train: int, test: int, test_seeds: Sequence[int] = TEST_SEEDS, say: Callable[[str], None] = print
) -> tuple[Path, Path, list[Path]]:
    """Data folders below `root`, made where missing: (training, validation, tests).

    train, test: samples in each; validation is of training content, with other samples.
    """
    wanted = {"train": ("train", 1, train, TRAINING_TASKS)}
    wanted |= {"validation": ("train", 2, 20 * len(TASKS), tuple(TASKS))}
    wanted |= {f"test-{seed}": ("test", seed, test, tuple(TASKS)) for seed in test_seeds}
    for name, (split, seed, count, tasks) in wanted.items():
        if not (root / name).exists():
            started = time.perf_counter()
            write_data_folder(root / name, lines(samples(split, seed, count, tasks)))
            say(f"{root / name}: {count} samples in {time.perf_counter() - started:.0f} s")
    return root / "train", root / "validation", [root / f"test-{seed}" for seed in test_seeds]


def ask_all(model: Path, tests: Sequence[Path], said: Path, batch_size: int = BATCH_SIZE) -> list[Evaluation]:
    """What a model (student, teacher or bundle folder) says to every test set; its texts are kept in `said`."""
    said.mkdir(parents=True, exist_ok=True)
    engine = Engine(batch_size=batch_size)
    return [evaluate(model, test, engine=engine, predictions=said / f"{test.name}.jsonl") for test in tests]


def accuracy(found: Sequence[Evaluation]) -> dict[str, float]:
    """Mean accuracy over test sets by task, and over all of them."""
    names = [name for name in TASKS if name in found[0].tasks]
    means = {name: sum(one.tasks[name].accuracy.value for one in found) / len(found) for name in names}
    return {**means, "all": sum(one.micro.accuracy.value for one in found) / len(found)}


def table_line(name: str, found: dict[str, float]) -> str:
    """One model's accuracies in per cent."""
    return f"{name:20} " + " ".join(f"{task} {100 * value:.1f}" for task, value in found.items())
