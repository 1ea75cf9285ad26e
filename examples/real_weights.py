"""The whole way on real weights: assemble a LLaVA, convert, export, verify, then ask it, all through the command line.

    python examples/real_weights.py [--fresh] [--out DIR] [--quant none]

Every product stays in the output folder, so a second run goes straight to verify and the questions; `--fresh` starts
over. The student is converted, **not distilled**, and the LLaVA's projector is untrained: its words mean nothing yet.
What the demo shows is that every step works on real weights, how long it takes and how large its product is.
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
from typing import Any

EXAMPLES = Path(__file__).parent
OUT = EXAMPLES.parent / "out" / "real-weights"
LINMU = (sys.executable, "-m", "linmu")


@dataclass(frozen=True)
class Step:
    """One product: the command that makes it and the file that is written last."""

    name: str
    command: tuple[str, ...]
    folder: Path
    last_file: str


@dataclass(frozen=True)
class Row:
    """One line of the summary; `seconds` None means the product was already there."""

    name: str
    seconds: float | None
    note: str


def products(out: Path, quant: str) -> tuple[Step, ...]:
    """Teacher, student and bundle, in the order they are made."""
    teacher, student, bundle = out / "teacher", out / "student", out / f"bundle-{quant}"
    assemble = (sys.executable, str(EXAMPLES / "assemble_llava.py"), str(teacher))
    convert = (*LINMU, "convert", str(teacher), "-o", str(student))
    export = (*LINMU, "export", str(student), "--target", "onnx", "--quant", quant, "-o", str(bundle))
    return (
        Step("assemble", assemble, teacher, "processor_config.json"),
        Step("convert", convert, student, "config.json"),
        Step("export", export, bundle, "manifest.json"),
    )


def make(steps: tuple[Step, ...]) -> list[Row]:
    """Make what is missing; a product made anew makes everything after it anew."""
    rows, stale = [], False
    for step in steps:
        seconds = None
        if stale or not (step.folder / step.last_file).exists():
            stale = True
            shutil.rmtree(step.folder, ignore_errors=True)
            seconds, _ = call(step.command)
        rows.append(Row(step.name, seconds, f"{folder_bytes(step.folder) / 1e6:,.0f} MB in {step.folder}"))
    return rows


def call(command: tuple[str, ...]) -> tuple[float, str]:
    """Run a command, its stderr shown as it comes; seconds and stdout. Its failure ends the demo with its exit code."""
    print("$ " + " ".join(command[1:] if command[0] == sys.executable else command), file=sys.stderr, flush=True)
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        sys.exit(done.returncode)
    return time.perf_counter() - start, done.stdout


def ask(bundle: Path, question: str, image: Path | None, tokens: int) -> Row:
    """One `linmu run`, its answer and timings as a summary line."""
    picture = ("--image", str(image)) if image else ()
    command = (*LINMU, "run", str(bundle), "--prompt", question, *picture, "--max-new-tokens", str(tokens), "--json")
    seconds, printed = call(command)
    answer: dict[str, Any] = json.loads(printed)
    timings = ", ".join(f"{name} {value:.3g}" for name, value in answer["timings"].items() if _is_number(value))
    text = " ".join(answer["text"].split())
    return Row("ask a picture" if image else "ask in text", seconds, f"{text[:80]!r} ({timings})")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def photograph(out: Path) -> Path:
    """A photograph that scikit-image ships in its wheel, as PNG."""
    from PIL import Image
    from skimage import data

    path = out / "astronaut.png"
    if not path.exists():
        Image.fromarray(data.astronaut()).save(path)
    return path


def folder_bytes(folder: Path) -> int:
    """Bytes of every file below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def summary(rows: list[Row]) -> str:
    """The rows as aligned text."""
    width = max(len(row.name) for row in rows)
    times = ["   kept" if row.seconds is None else f"{row.seconds:5.1f} s" for row in rows]
    return "\n".join(f"{row.name:<{width}}  {spent}  {row.note}" for row, spent in zip(rows, times, strict=True))


def main() -> None:
    """Run every step and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--fresh", action="store_true", help="make every product anew")
    parser.add_argument("--quant", default="none", help="preset of the bundle")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    args = parser.parse_args()
    steps = products(args.out, args.quant)
    if args.fresh:
        for step in steps:
            shutil.rmtree(step.folder, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = make(steps)
    bundle = steps[-1].folder
    seconds, _ = call((*LINMU, "verify", str(bundle), "--student", str(args.out / "student"), "--json"))
    rows.append(Row("verify", seconds, "every level passed"))
    rows.append(ask(bundle, "What is in this picture?", photograph(args.out), args.max_new_tokens))
    rows.append(ask(bundle, "What is the capital of France?", None, args.max_new_tokens))
    print(summary(rows))
    print("The student is not distilled and the projector is untrained: its answers mean nothing yet.")


if __name__ == "__main__":
    main()
