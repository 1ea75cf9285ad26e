"""The main job on the demo student that linmu ships: export, verify, questions; then for Jetson and for phones.

    python examples/demo.py [--out DIR] [--seed N]

Everything goes through the command line, as a user would do it. The pictures are of the test half of the demo's data:
no handwritten digit, word, font or layout in them occurs in training. OUT/answers.png shows them all with the
student's answers, OUT/pictures holds them as files to try by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from examples.questions.generate import TASKS, Sample, lines, sample, samples  # noqa: E402
from linmu.formats.data_folder import write_data_folder, write_video  # noqa: E402

OUT = Path(__file__).parents[1] / "out" / "demo"
LINMU = (sys.executable, "-m", "linmu")
CELL = (330, 240)  # width and height of one question on the sheet
COLUMNS = 4
CALIBRATION_SAMPLES = 36


@dataclass(frozen=True)
class Answer:
    """What the student said to a sample, and the milliseconds it took to the first token."""

    sample: Sample
    text: str
    ttft_ms: float

    @property
    def right(self) -> bool:
        """Exactly the expected answer."""
        return self.text.strip() == self.sample.question.answer


def call(*arguments: str) -> str:
    """Run `linmu`, its stderr shown as it comes; stdout. Its failure ends the demo with its exit code."""
    print("$ linmu " + " ".join(arguments), file=sys.stderr, flush=True)
    done = subprocess.run((*LINMU, *arguments), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        sys.exit(done.returncode)
    return done.stdout


def save_media(item: Sample, folder: Path) -> list[str]:
    """Write the pictures or the clip of a sample; the options of `linmu run` that name them."""
    options = []
    for i, picture in enumerate(item.scene.images):
        path = folder / f"{item.question.task}-{i + 1}.png"
        picture.save(path)
        options += ["--image", str(path)]
    if item.scene.frames is not None:
        path = folder / f"{item.question.task}.mp4"
        write_video(path, list(item.scene.frames), 1.0)
        options += ["--video", str(path)]
    return options


def ask(bundle: Path, item: Sample, folder: Path) -> Answer:
    """One `linmu run`."""
    options = save_media(item, folder)
    said = json.loads(call("run", str(bundle), "--prompt", item.question.prompt, *options, "--json"))
    return Answer(item, said["text"], said["timings"]["ttft_ms"])


def sheet(answers: list[Answer]) -> Image.Image:
    """All questions with their pictures and answers."""
    rows = -(-len(answers) // COLUMNS)
    page = Image.new("RGB", (CELL[0] * COLUMNS, CELL[1] * rows), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for index, answer in enumerate(answers):
        x, y = index % COLUMNS * CELL[0] + 8, index // COLUMNS * CELL[1] + 8
        scene = answer.sample.scene
        frames = [] if scene.frames is None else [Image.fromarray(np.asarray(frame)) for frame in scene.frames]
        shown = [*scene.images, *frames]
        side = min(150, (CELL[0] - 16) // max(len(shown), 1) - 2)
        for i, picture in enumerate(shown):
            page.paste(picture.resize((side, side)), (x + i * (side + 2), y))
        words, color = answer.sample.question.prompt.split(), "darkgreen" if answer.right else "darkred"
        rows_of_text = [" ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
        draw.text((x, y + 154), "\n".join(rows_of_text), font=font, fill="black")
        verdict = "" if answer.right else f"   (expected {answer.sample.question.answer})"
        draw.text((x, y + 160 + 18 * len(rows_of_text)), answer.text.strip() + verdict, font=font, fill=color)
    return page


def calibrate(out: Path, seed: int) -> Path:
    """Calibrate on the demo's own questions, once for every target -> the record."""
    write_data_folder(out / "samples", lines(samples("train", seed, CALIBRATION_SAMPLES, tuple(TASKS))))
    call("calibrate", "--data", str(out / "samples"), "-o", str(out / "calib.safetensors"))
    return out / "calib.safetensors"


def for_jetson(out: Path, record: Path) -> None:
    """Export int4 (TensorRT-RTX compiles it), verify what can be here."""
    bundle = out / "jetson"
    call("export", "--target", "jetson", "--quant", "int4", "--calib", str(record), "-o", str(bundle))
    call("verify", str(bundle), "--steps", "64")
    print(f"{bundle}: copy it to the Jetson, then linmu build, linmu verify, linmu run (docs/jetson.md)")


def for_phone(out: Path, record: Path, seed: int) -> None:
    """Export 8da4w (minutes: ExecuTorch lowers six methods), verify with the phones' own runner, ask a picture."""
    bundle = out / "phone"
    call("export", "--target", "android", "--quant", "8da4w", "--calib", str(record), "-o", str(bundle))
    call("verify", str(bundle), "--steps", "64")
    answer = ask(bundle, sample("position", "test", seed, 0), out / "pictures")
    question = answer.sample.question
    print(f"on ExecuTorch: {question.prompt} {answer.text.strip()} (expected {question.answer})")
    print(f"{bundle}: copy model.pte and tokenizer/tokenizer.json to the phone (docs/android.md, docs/ios.md)")


def main() -> None:
    """Export, verify, ask; then the same student with int4 weights for a Jetson and for a phone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    started = time.perf_counter()
    shutil.rmtree(args.out, ignore_errors=True)
    pictures, bundle = args.out / "pictures", args.out / "bundle"
    pictures.mkdir(parents=True)
    call("export", "--target", "onnx", "-o", str(bundle))
    call("verify", str(bundle), "--steps", "64")
    answers = [ask(bundle, sample(task, "test", args.seed, 0), pictures) for task in TASKS]
    sheet(answers).save(args.out / "answers.png")
    for answer in answers:
        question = answer.sample.question
        mark = "right" if answer.right else f"expected {question.answer!r}"
        print(f"{question.task:10} {question.prompt:50} {answer.text.strip():16} {mark}   {answer.ttft_ms:.0f} ms")
    print(f"{sum(a.right for a in answers)} of {len(answers)} right")
    record = calibrate(args.out, args.seed)
    for_jetson(args.out, record)
    for_phone(args.out, record, args.seed)
    print(f"{time.perf_counter() - started:.0f} s in all")
    print(f"look at {args.out / 'answers.png'}; ask the pictures in {pictures} something else:")
    print(f'linmu run {bundle} --image {pictures / "position-1.png"} --prompt "How many objects are there?"')


if __name__ == "__main__":
    main()
