r"""Teach the demo's teacher real pictures: Tux Paint's stamps (see stamps.py for where they come from).

    python examples/stamps_teacher.py SOURCE out/stamps-teacher [--start TEACHER] [--steps 1600]

Training goes on from the demo's teacher; a fifth of each step stays with the demo's questions. Then:

    python examples/stamps.py SOURCE out/stamps-data --train 12000 --test 1500
    linmu convert out/stamps-teacher -o out/stamps-converted --set window_frames=2 --set window_rows=4 \
        --set window_columns=4 --set chunk_size=64
    linmu distill out/stamps-converted --teacher out/stamps-teacher --data out/stamps-data/train \
        -o out/stamps-student --recipe examples/stamps_student.yaml
    linmu eval out/stamps-student --teacher out/stamps-teacher --data out/stamps-data/test

The pictures are GPL-2: ship no model trained on them under another licence.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import transformers as hf
from stamps_questions import Pool, ask, pools
from stamps_scenes import draw
from stamps_source import load_stamps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from training import Conversations, train  # noqa: E402

from examples.questions import teacher_folder  # noqa: E402
from examples.questions.generate import SCENES  # noqa: E402
from examples.questions.stills import Question, Scene  # noqa: E402

PASSES, COUNT, DEMO_COUNT = 3, 24, 12  # micro-batches of a step: two of stamps, one of the demo's stills
DEMO = ("digit", "number", "reading", "objects", "pictures")
WARMUP = 50


def scenes(index: int, both: tuple[Pool, Pool], seed: int) -> list[Scene]:
    """The scenes of micro-batch `index`."""
    step, place = divmod(index, PASSES)
    if place == PASSES - 1:
        rng = np.random.default_rng([seed, index])
        return [SCENES[name](rng, "train") for name in rng.choice(DEMO, DEMO_COUNT)]
    found = []
    for i in range(COUNT):
        question, random = ask(both, "train", seed + 1, (step * (PASSES - 1) + place) * COUNT + i)
        pictures = tuple(draw(scene, random) for scene in question.scenes)
        found.append(Scene((Question(question.task, question.prompt, question.answer),), pictures))
    return found


def rate(step: int, steps: int) -> float:
    """Share of the learning rate: warm-up, then a cosine to zero."""
    return min(step / WARMUP, 0.5 * (1 + math.cos(math.pi * step / steps)))


def main() -> None:
    """Copy the start, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the .deb file, the unpacked package or the stamps folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, default=teacher_folder())
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if not args.out.exists():
        shutil.copytree(args.start, args.out, ignore=shutil.ignore_patterns("training", "processor", "curve.csv"))
    model = hf.SmolVLMForConditionalGeneration.from_pretrained(args.out, dtype="float32", use_safetensors=True)
    stamps, _ = load_stamps(args.source)
    make = partial(scenes, both=pools(stamps), seed=args.seed)
    data = Conversations(args.out, args.steps * PASSES, make)
    schedule = partial(rate, steps=args.steps)
    train(model, data, args.out, args.steps, PASSES, args.learning_rate, schedule, args.seed, args.resume)


if __name__ == "__main__":
    main()
