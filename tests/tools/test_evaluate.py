"""The whole evaluation: figures against counts made by hand, resuming, the command line, a device without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

from linmu.cli import main
from linmu.errors import InputError
from linmu.evaluation.answerers import Answer, Engine, open_answerer
from linmu.evaluation.questions import Question
from linmu.evaluation.report import by_label, by_task, macro, micro, score
from linmu.tools.evaluate import Plan, evaluate
from tests.evaluation import layouts
from tests.evaluation.models import bundle_of, place_of, questions_of
from tests.paths import ROOT

ROOM = 4
PLAN = Plan(max_new_tokens=ROOM)


def said_by(folder: Path, questions) -> dict[str, Answer]:
    answerer = open_answerer(folder, Engine())
    return {question.id: answer for question, answer in answerer.answers(questions, ROOM)}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A SmolVLM-like student and teacher with data: 3 of 4 answers are the student's, 2 of 4 the teacher's."""
    root = place_of("smolvlm", tmp_path_factory)
    data = root / "known"
    if not data.exists():
        questions = questions_of(root)
        student, teacher = (said_by(root / kind, questions) for kind in ("student", "teacher"))
        assert all(student[name].text != teacher[name].text for name in student)
        lines = []
        for question, who in zip(questions, ("student", "both", "student", "teacher"), strict=True):
            texts = {"student": student[question.id].text, "teacher": teacher[question.id].text}
            right = list(texts.values()) if who == "both" else [texts[who]]
            line = {"id": question.id, "prompt": question.prompt, "answer": right[0], "answers": right[1:]}
            line |= {"images": [path.name for path in question.images], "task": "seen" if question.images else "text"}
            if question.video is not None:
                line |= {"video": question.video.name}
            lines.append(json.dumps(line))
        data.mkdir()
        for path in (root / "data").iterdir():
            os.link(path, data / path.name) if path.name != "data.jsonl" else None
        (data / "data.jsonl").write_text("\n".join(lines))
    return root


def test_accuracy_by_task_against_a_teacher(place):
    steps = []
    found = evaluate(
        place / "student",
        place / "known",
        teacher=place / "teacher",
        plan=PLAN,
        progress=lambda *step: steps.append(step),
    )
    # text: 1 of 2 (the teacher 1 of 2, the other one); seen: 2 of 2 (the teacher 1 of 2)
    assert {name: (row.n, row.accuracy.value, row.teacher.accuracy.value) for name, row in found.tasks.items()} == {
        "seen": (2, 1.0, 0.5),
        "text": (2, 0.5, 0.5),
    }
    document = json.loads(json.dumps(found.to_json()))
    total = document["micro"]
    limits = binomtest(3, 4).proportion_ci(method="wilson")
    assert total["accuracy"] == 0.75 and total["interval"] == pytest.approx([limits.low, limits.high])
    assert total["teacher"]["accuracy"] == 0.5 and total["share"] == 1.5 and total["agreement"] == 0
    assert total["difference"] == 0.25 and total["difference_interval"][0] < 0 < total["difference_interval"][1]
    assert (total["gained"], total["lost"], total["n"], total["guessed"]) == (2, 1, 4, 0)
    assert document["macro"]["accuracy"] == 0.75 and document["macro"]["share"] == 1.5
    assert document["data"] | {"folder": ""} == {
        "folder": "",
        "format": "linmu",
        "split": None,
        "subtitles": False,
        "ignore_case": False,
        "questions": 4,
        "asked": 4,
        "seed": 0,
        "max_new_tokens": ROOM,
    }
    assert document["model"]["kind"] == "student" and document["teacher"]["kind"] == "teacher"
    assert document["model"]["backend"] == "torch (cpu, float32)" and document["groups"] == {}
    assert steps == [("model", i, 4) for i in range(1, 5)] + [("teacher", i, 4) for i in range(1, 5)]


def test_a_model_agrees_with_itself(place):
    found = evaluate(place / "student", place / "known", teacher=place / "student", plan=PLAN)
    assert found.micro.teacher.agreement == 1 and found.micro.teacher.difference.value == 0
    assert found.micro.teacher.gained == found.micro.teacher.lost == 0


def test_a_stopped_run_goes_on(place, tmp_path, monkeypatch):
    path = tmp_path / "said.jsonl"
    whole = evaluate(place / "student", place / "known", teacher=place / "teacher", plan=PLAN)

    class Stop(Exception):
        pass

    def stop(who, done, total):
        if (who, done) == ("teacher", 3):
            raise Stop

    options = {"teacher": place / "teacher", "plan": PLAN, "engine": Engine(batch_size=1), "predictions": path}
    with pytest.raises(Stop):
        evaluate(place / "student", place / "known", progress=stop, **options)
    assert path.read_text().count("\n") == 1 + 4 + 3
    again = evaluate(place / "student", place / "known", **options)
    assert (again.model.resumed, again.teacher.resumed) == (4, 3)
    assert again.micro == whole.micro and again.tasks == whole.tasks
    assert path.read_text().count("\n") == 1 + 4 + 4
    # other room for the answers, another dtype: asked again
    for plan, engine in ((Plan(max_new_tokens=1), Engine()), (PLAN, Engine(dtype="bfloat16"))):
        other = evaluate(place / "student", place / "known", plan=plan, engine=engine, predictions=path)
        assert other.model.resumed == 0
    # a limit asks some of the same questions
    part = evaluate(place / "student", place / "known", plan=Plan(limit=3, max_new_tokens=ROOM), predictions=path)
    assert part.model.resumed == part.micro.n == 3 and sorted(part.tasks) == ["seen", "text"]


def test_benchmarks_end_to_end(place, tmp_path):
    """The student answers a hand-made LongVideoBench; texts without a letter are guesses."""
    folder = layouts.longvideobench_copy(tmp_path / "lvb")
    path = tmp_path / "said.jsonl"
    found = evaluate(place / "student", folder, teacher=place / "teacher", plan=PLAN, predictions=path)
    assert list(found.tasks) == ["15 s", "600 s"] and sorted(found.groups) == ["level", "question category", "topic"]
    assert found.groups["question category"]["TOS"] == found.micro and found.data["format"] == "longvideobench"
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()[1:4]]
    assert found.micro.guessed == sum(not set(text) & set("ABCDE") for text in texts)


def test_notes(place):
    """Cut answers, and a teacher that prepares pictures in another way."""
    found = evaluate(place / "student", place / "known", plan=Plan(max_new_tokens=1))
    assert found.model.unfinished and any("were cut off after 1 tokens" in note for note in found.notes)
    path = place / "student" / "processor_config.json"
    before = path.read_text()
    config = json.loads(before)
    config["image_processor"]["size"] = {"longest_edge": 64}
    try:
        path.write_text(json.dumps(config))
        found = evaluate(place / "student", place / "known", teacher=place / "teacher", plan=PLAN)
    finally:
        path.write_text(before)
    assert any("in different ways" in note for note in found.notes)


def scored(task: str, ours: str, theirs: str, answer: str, name: str, **labels: str):
    question = Question(name, "?", (answer,), task=task, labels=tuple(labels.items()))
    return score(question, ours, theirs)


def test_rows_by_hand():
    items = [
        scored("a", "x", "x", "x", "1", part="p"),
        scored("a", "y", "x", "x", "2", part="q"),
        scored("a", "x ", "y", "x", "3", part="p"),
        scored("10 s", "y", "z", "x", "4", part="p"),
    ]
    total, tasks = micro(items), by_task(items)
    assert list(tasks) == ["10 s", "a"]
    assert (total.accuracy.value, total.teacher.accuracy.value, total.teacher.agreement) == (0.5, 0.5, 0.25)
    assert (total.teacher.gained, total.teacher.lost, total.teacher.share) == (1, 1, 1.0)
    assert tasks["10 s"].teacher.share is None
    mean = macro(tasks)
    assert mean.accuracy.value == pytest.approx((2 / 3 + 0) / 2) and mean.n == 4
    ends = [(row.accuracy.value - row.accuracy.low) ** 2 for row in tasks.values()]
    assert mean.accuracy.low == pytest.approx(1 / 3 - sum(ends) ** 0.5 / 2)
    assert mean.teacher.difference.value == 0
    assert {name: row.n for name, row in by_label(items)["part"].items()} == {"p": 3, "q": 1}


@pytest.mark.parametrize(
    ("plan", "engine", "message"),
    [
        (Plan(limit=0), Engine(), "limit; got 0"),
        (Plan(max_new_tokens=-1), Engine(), "max_new_tokens; got -1"),
        (Plan(), Engine(batch_size=0), "batch_size; got 0"),
        (Plan(format="docvqa"), Engine(), "got 'docvqa'"),
        (Plan(split="val"), Engine(), "no splits"),
    ],
)
def test_bad_plans(place, tmp_path, plan, engine, message):
    with pytest.raises(InputError, match=message):
        evaluate(place / "student", place / "known", plan=plan, engine=engine, predictions=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_the_command(place, capsys, tmp_path):
    arguments = ["eval", str(place / "student"), "--data", str(place / "known"), "--teacher", str(place / "teacher")]
    arguments += ["--max-new-tokens", str(ROOM), "--predictions", str(tmp_path / "said.jsonl")]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["micro"]["accuracy"] == 0.75 and document["tasks"]["seen"]["teacher"]["accuracy"] == 0.5
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in (
        "micro",
        "75.0 (30.1..95.4)",
        "150.0%",
        "+25.0 (",
        "4 answers from the predictions file",
        "same text: 0.0%",
    ):
        assert part in captured.err


def test_help_has_an_example(capsys):
    assert main(["eval", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example: linmu eval" in shown and "--predictions" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "none"], "no data folder none"),
        ([], "--data"),
        (["--data", "KNOWN", "--format", "nope"], "data format; got 'nope'"),
        (["--data", "KNOWN", "--backend", "onnxruntime"], "expected auto or torch"),
        (["--data", "KNOWN", "--limit", "0"], "limit"),
        (["--data", "KNOWN", "--predictions", "JSONL"], "holds no predictions"),
        (["--data", "KNOWN", "--teacher", "none"], "none is no bundle, student or teacher"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(place, capsys, options, message):
    known = place / "known"
    names = {"KNOWN": str(known), "JSONL": str(known / "data.jsonl")}
    before = (known / "data.jsonl").read_bytes()
    assert main(["eval", str(place / "student"), *(names.get(option, option) for option in options)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and message in captured.err
    assert (known / "data.jsonl").read_bytes() == before


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "onnx", "peft", "accelerate", "pyarrow"):
    sys.modules[name] = None  # as if it were not installed
from linmu.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_bundle_is_evaluated_without_torch(place, tmp_path_factory):
    bundle = bundle_of("smolvlm", tmp_path_factory)
    done = without_torch("eval", bundle, "--data", place / "known", "--max-new-tokens", ROOM, "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["micro"]["accuracy"] == 0.75 and document["model"]["backend"] == "onnxruntime"
    done = without_torch("eval", place / "student", "--data", place / "known")
    assert done.returncode == 3 and "linmu[convert]" in done.stderr and done.stderr.count("\n") == 1


def test_a_bundle_against_its_own_student(place, tmp_path_factory):
    bundle = bundle_of("smolvlm", tmp_path_factory)
    found = evaluate(bundle, place / "known", teacher=place / "student", plan=PLAN, engine=Engine(threads=1))
    assert found.micro.teacher.agreement == 1 and not [note for note in found.notes if "different ways" in note]
    assert found.micro.accuracy.value == found.micro.teacher.accuracy.value == 0.75
