"""How far every preset and state precision drifts from float32 over 32,768 decode steps.

    linmu calibrate STUDENT --data TRAIN -o calib.safetensors
    python benchmarks/drift.py STUDENT calib.safetensors HELD_OUT OUT [--steps 32768] [--plot docs/drift.svg]

Sequences begin with a real prompt (pictures included) and are then fed the questions and answers of the data as plain
text, over and over, one token a step, in the eager step form: what graphs are held to. Every variant sees the same
tokens; its logits are compared with those of float32 in a window of steps that ends at each moment and is a tenth of it
long. OUT/drift.json keeps finished presets: a run that was stopped goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.variants import FLOAT, Sequences, Variant, open_variant, variants  # noqa: E402
from linmu.calibration.record import record_of  # noqa: E402
from linmu.calibration.samples import CalibrationSample, DataSamples  # noqa: E402
from linmu.files.atomic import write_bytes  # noqa: E402
from linmu.formats.manifest import Manifest  # noqa: E402
from linmu.formats.state_precision import STATE_PRECISIONS  # noqa: E402
from linmu.formats.weights_hash import student_weights_hash  # noqa: E402
from linmu.processing.encode import model_processor  # noqa: E402
from linmu.reference.eager import StudentRunner  # noqa: E402
from linmu.verification.players import RunnerPlayer  # noqa: E402

MOMENTS = (1, 10, 100, 1_000, 4_000, 16_000, 32_768)
COLORS = {"fp32": "black", "fp16": "tab:gray", "int8": "tab:blue", "int4": "tab:red", "fp8": "tab:green"}
LINES = {"fp32": "-", "fp16": "--"}
LAST_STATE = list(STATE_PRECISIONS)[-1]  # the row of a variant that is written last


@dataclass(frozen=True)
class Course:
    """What all variants are fed: prompts of B sequences, forced tokens [steps, B], and the moments to compare."""

    prompts: list[CalibrationSample]
    tokens: np.ndarray
    moments: tuple[int, ...]

    def kept(self) -> np.ndarray:
        """Ascending steps (from 1) of all windows."""
        return np.unique(np.concatenate([np.arange(*window(moment)) for moment in self.moments]))

    def fingerprint(self) -> str:
        """Names prompts, tokens and moments."""
        ids = np.concatenate([prompt.inputs.input_ids for prompt in self.prompts])
        return sha256(ids.tobytes() + self.tokens.tobytes() + repr(self.moments).encode()).hexdigest()[:16]


def window(moment: int) -> tuple[int, int]:
    """The steps from .. to (without it) that are compared at a moment."""
    return moment - moment // 10 + (moment >= 10), moment + 1


def read_course(data: Path, student: Path, sequences: int, steps: int) -> Course:
    """Prompts with pictures from the data, and its text as one endless stream that each sequence enters elsewhere."""
    processor = model_processor(student)
    samples = list(DataSamples(data, processor, 512).read(0))
    seen = [sample for sample in samples if sample.inputs.media] or samples
    prompts = [seen[i * len(seen) // sequences] for i in range(sequences)]
    media = list(processor.media_token_ids)
    ids = [np.concatenate([sample.inputs.input_ids, sample.answer]) for sample in samples]
    stream = np.concatenate(ids).astype(np.int64)
    stream = stream[~np.isin(stream, media)]
    starts = [i * len(stream) // sequences for i in range(sequences)]
    tokens = np.stack([np.resize(np.roll(stream, -start), steps) for start in starts], 1)
    return Course(prompts, tokens, tuple(moment for moment in MOMENTS if moment <= steps))


@torch.inference_mode()
def forced_logits(runner: StudentRunner, manifest: Manifest, course: Course, say: str) -> dict[str, np.ndarray]:
    """Logits [kept steps, B, V] of a preset, by state precision."""
    players = [RunnerPlayer(runner, manifest, prompt.inputs) for prompt in course.prompts]
    for player in players:
        player.start()
    sequences, kept = Sequences(runner), course.kept()
    sequences.begin(players)
    tokens = torch.from_numpy(course.tokens).repeat(1, len(STATE_PRECISIONS))
    found = np.empty((len(kept), tokens.shape[1], runner.form.vocab), np.float32)
    row, started = 0, time.perf_counter()
    for step in range(1, len(tokens) + 1):
        logits = sequences.step(tokens[step - 1])
        if row < len(kept) and kept[row] == step:
            found[row] = logits.numpy()
            row += 1
        if step % 4096 == 0:
            print(f"{say}: {step} steps, {step / (time.perf_counter() - started):.0f}/s", file=sys.stderr, flush=True)
    return dict(zip(STATE_PRECISIONS, np.split(found, len(STATE_PRECISIONS), 1), strict=True))


def compare(course: Course, wanted: np.ndarray, found: np.ndarray) -> dict[str, dict[str, float]]:
    """By moment: KL in nats (mean, largest), largest |logit difference| / std, share of equal likeliest tokens."""
    kept, table = course.kept(), {}
    for moment in course.moments:
        low, high = np.searchsorted(kept, window(moment))
        p, q = (torch.log_softmax(torch.from_numpy(rows[low:high]).double(), -1) for rows in (wanted, found))
        kl = (p.exp() * (p - q)).sum(-1)
        gap = np.abs(found[low:high] - wanted[low:high]).max(-1) / wanted[low:high].std(-1)
        same = found[low:high].argmax(-1) == wanted[low:high].argmax(-1)
        table[str(moment)] = {
            "kl_mean": float(kl.mean()),
            "kl_max": float(kl.max()),
            "logit_max": float(gap.max()),
            "logit_mean": float(gap.mean()),
            "same_token": float(same.mean()),
        }
    return table


def named(variant: Variant, state: str) -> str:
    """A row of the table."""
    return f"{variant.name}; state {state}"


def finished(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Results of an earlier run; one of other inputs ends the program."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    if document["facts"] != facts:
        sys.exit(f"{path} is of another run: {document['facts']} instead of {facts}; choose another OUT")
    return document["variants"]


def text_table(done: dict[str, Any], moments: tuple[int, ...]) -> str:
    """Markdown: mean KL at every moment, and at the last one the worst logit and the share of equal tokens."""
    head = ["matrices; state", *(f"{moment:,}" for moment in moments), "largest", "logit", "same"]
    rows = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, table in done.items():
        last = table[str(moments[-1])]
        cells = [
            name,
            *(f"{table[str(moment)]['kl_mean']:.1e}" for moment in moments),
            f"{last['kl_max']:.1e}",
            f"{last['logit_max']:.2g}",
            f"{100 * last['same_token']:.1f}%",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(done: dict[str, Any], moments: tuple[int, ...], path: Path) -> None:
    """Mean KL over steps, a line a variant: colour by preset, dashes by state."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update({"svg.hashsalt": "linmu", "svg.fonttype": "none"})
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, table in done.items():
        matrices, state = name.split("; state ")
        values = [max(table[str(moment)]["kl_mean"], 1e-12) for moment in moments]
        color = COLORS[matrices.split()[0]]
        marker = "." if "jetson" in matrices else "x" if "onnx" in matrices else "o"
        axes.plot(moments, values, LINES[state], color=color, marker=marker, markersize=4, linewidth=1, label=name)
    axes.set(xscale="log", yscale="log", xlabel="decode step", ylabel="KL to float32 (nats a token, mean)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=6)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Measure what is not measured yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=MOMENTS[-1])
    parser.add_argument("--sequences", type=int, default=2)
    parser.add_argument("--only", default="", help="part of a preset's name")
    parser.add_argument("--plot", type=Path, help="an .svg or .png file to draw")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    student_hash = student_weights_hash(args.student)
    record = record_of(args.record, student_hash)
    course = read_course(args.data, args.student, args.sequences, args.steps)
    facts = {
        "student": student_hash[:16],
        "course": course.fingerprint(),
        "record": sha256(args.record.read_bytes()).hexdigest()[:16],
    }
    path, reference = args.out / "drift.json", args.out / "float32.npy"
    done = finished(path, facts)
    for variant in variants():
        if variant != FLOAT and (args.only not in variant.name or named(variant, LAST_STATE) in done):
            continue
        if variant == FLOAT and named(variant, LAST_STATE) in done and reference.exists():
            continue
        logits = forced_logits(*open_variant(args.student, variant, record), course, variant.name)
        if variant == FLOAT:
            np.save(reference, logits["fp32"])
        wanted = np.load(reference)
        done |= {named(variant, state): compare(course, wanted, found) for state, found in logits.items()}
        write_bytes(path, json.dumps({"facts": facts, "variants": done}, indent=1).encode())
    rows = [named(variant, state) for variant in variants() for state in STATE_PRECISIONS]
    shown = {name: done[name] for name in rows[1:] if name in done}
    print(text_table(shown, course.moments))
    if args.plot is not None:
        plot(shown, course.moments, args.plot)
    print(json.dumps({**facts, "sequences": args.sequences, "steps": args.steps, "variants": done}))


if __name__ == "__main__":
    main()
