"""What every preset and state precision gets right, by generation, on the same questions.

    linmu calibrate STUDENT --data TRAIN -o calib.safetensors
    python -m examples.questions.generate TEST --split test --count 600 --seed 301
    python benchmarks/preset_accuracy.py STUDENT calib.safetensors TEST OUT [--bundle BUNDLE]...

Greedy answers of the eager step form: what exported graphs are held to. `--bundle` adds a row for an exported bundle in
ONNX Runtime. Differences to float32 are paired, with 95% intervals. OUT/accuracy.json keeps finished rows: a run that
was stopped goes on. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.variants import FLOAT, Sequences, open_variant, variants  # noqa: E402
from linmu.calibration.record import record_of  # noqa: E402
from linmu.evaluation.answerers import Engine, open_answerer  # noqa: E402
from linmu.evaluation.benchmarks import detect, find_format, read_questions  # noqa: E402
from linmu.evaluation.intervals import paired_difference  # noqa: E402
from linmu.evaluation.questions import Question, check, choose  # noqa: E402
from linmu.evaluation.scoring import RULES  # noqa: E402
from linmu.files.atomic import write_bytes  # noqa: E402
from linmu.formats.manifest import Manifest  # noqa: E402
from linmu.formats.state_precision import STATE_PRECISIONS  # noqa: E402
from linmu.formats.weights_hash import student_weights_hash  # noqa: E402
from linmu.processing import ModelInputs, Processor  # noqa: E402
from linmu.processing.encode import model_processor  # noqa: E402
from linmu.reference.eager import StudentRunner  # noqa: E402
from linmu.verification.players import RunnerPlayer  # noqa: E402

AT_ONCE = 8  # questions whose answers are generated together
FIRST = f"{FLOAT.name}; state fp32"

Texts = dict[str, str]  # by question id


@torch.inference_mode()
def answers(
    runner: StudentRunner, manifest: Manifest, inputs: dict[str, ModelInputs], processor: Processor, room: int
) -> dict[str, Texts]:
    """Greedy texts of all questions, by state precision."""
    sequences, found = Sequences(runner), {state: Texts() for state in STATE_PRECISIONS}
    names = list(inputs)
    for low in range(0, len(names), AT_ONCE):
        ids = names[low : low + AT_ONCE]
        players = [RunnerPlayer(runner, manifest, inputs[name]) for name in ids]
        best = torch.tensor([int(player.start().argmax()) for player in players]).repeat(len(STATE_PRECISIONS))
        sequences.begin(players)
        tokens = [best]
        while len(tokens) < room and not _all_ended(tokens, processor):
            tokens.append(sequences.step(tokens[-1]).argmax(-1))
        texts = [_text(row, processor) for row in torch.stack(tokens, 1).tolist()]
        for place, state in enumerate(STATE_PRECISIONS):
            found[state] |= dict(zip(ids, texts[place * len(ids) :], strict=False))
    return found


def _all_ended(tokens: list[torch.Tensor], processor: Processor) -> bool:
    ends = torch.tensor(list(processor.eos_token_ids))
    return bool(torch.isin(torch.stack(tokens), ends).any(0).all())


def _text(row: list[int], processor: Processor) -> str:
    stop = next((place for place, token in enumerate(row) if token in processor.eos_token_ids), len(row))
    return processor.decode(row[:stop])


def bundle_answers(bundle: Path, questions: list[Question], room: int) -> Texts:
    """Greedy texts of a bundle in ONNX Runtime."""
    answerer = open_answerer(bundle, Engine("onnxruntime", 1))
    try:
        return {question.id: answer.text for question, answer in answerer.answers(questions, room)}
    finally:
        answerer.close()


def scores(questions: list[Question], texts: Texts) -> list[float]:
    """0..1 for every question."""
    return [RULES[question.rule](texts[question.id], question).score for question in questions]


def text_table(questions: list[Question], said: dict[str, Texts]) -> str:
    """Markdown: accuracy by task and in all, difference to float32 with its interval, in per cent."""
    tasks = list(dict.fromkeys(question.task for question in questions))
    rows = ["| matrices; state | " + " | ".join(tasks) + " | all | difference |", "|---|" + "---:|" * (len(tasks) + 2)]
    first = scores(questions, said[FIRST])
    for name, texts in said.items():
        own = scores(questions, texts)
        by_task = [[score for score, item in zip(own, questions, strict=True) if item.task == task] for task in tasks]
        cells = [f"{100 * sum(part) / len(part):.1f}" for part in (*by_task, own)]
        gap = paired_difference(own, first)
        cells.append(f"{100 * gap.value:+.1f} ({100 * gap.low:+.1f} .. {100 * gap.high:+.1f})")
        rows.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(rows)


def main() -> None:
    """Ask what was not asked yet, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, help="a seeded part of the data, every task with its share")
    parser.add_argument("--bundle", type=Path, action="append", default=[])
    parser.add_argument("--only", default="", help="part of a variant's name; float32 is always asked")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    name = detect(args.data)
    questions = choose(read_questions(args.data, name, split=None, subtitles=False, ignore_case=False), args.samples, 0)
    check(questions)
    room, processor = find_format(name).max_new_tokens, model_processor(args.student)
    student_hash = student_weights_hash(args.student)
    facts = {
        "student": student_hash[:16],
        "questions": len(questions),
        "max_new_tokens": room,
        "asked": sha256("".join(question.digest() for question in questions).encode()).hexdigest()[:16],
        "record": sha256(args.record.read_bytes()).hexdigest()[:16],
    }
    path, said = args.out / "accuracy.json", dict[str, Texts]()
    if path.exists():
        document = json.loads(path.read_text())
        if document["facts"] != facts:
            sys.exit(f"{path} is of another run: {document['facts']} instead of {facts}; choose another OUT")
        said = document["said"]
    inputs = {item.id: processor.encode(item.prompt, item.pictures(), item.video, item.video_fps) for item in questions}
    record = record_of(args.record, student_hash)
    for variant in variants():
        if args.only not in variant.name and variant != FLOAT:
            continue
        started = time.perf_counter()
        if f"{variant.name}; state fp32" not in said:
            found = answers(*open_variant(args.student, variant, record), inputs, processor, room)
            said |= {f"{variant.name}; state {state}": texts for state, texts in found.items()}
            write_bytes(path, json.dumps({"facts": facts, "said": said}, indent=1).encode())
            print(f"{variant.name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    for bundle in args.bundle:
        if (row := f"{bundle.name} (ONNX Runtime)") not in said:
            said[row] = bundle_answers(bundle, questions, room)
            write_bytes(path, json.dumps({"facts": facts, "said": said}, indent=1).encode())
    print(text_table(questions, said))
    table = {row: sum(scores(questions, texts)) / len(questions) for row, texts in said.items()}
    print(json.dumps({**facts, "accuracy": table}))


if __name__ == "__main__":
    main()
