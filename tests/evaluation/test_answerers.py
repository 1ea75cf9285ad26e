"""Models that answer: batches are their rows, a bundle says what its student says, nothing else is taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection

import numpy as np
import pytest
import torch

from linmu.errors import InputError, MissingComponentError
from linmu.evaluation import answerers
from linmu.evaluation.answerers import Engine, open_answerer
from linmu.evaluation.questions import Question
from linmu.formats.model_files import read_model_folder
from linmu.layout import PromptRules
from linmu.model import answerer as torch_answerer
from linmu.model.answerer import batches
from linmu.model.folders import load_student, load_teacher
from linmu.model.hf_inputs import hf_inputs
from linmu.processing import ModelInputs
from tests.evaluation.models import bundle_of, place_of, questions_of

ROOM = 5


def ask(folder, questions, **options):
    answerer = open_answerer(folder, Engine(**options))
    found = dict((question.id, answer) for question, answer in answerer.answers(questions, ROOM))
    answerer.close()
    assert sorted(found) == sorted(question.id for question in questions)
    return found


# tests/distill holds batches of every family against their rows; here it is generation
STUDENTS = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "internvl", "llava", "llama")
TEACHERS = ("qwen2_5_vl", "smolvlm", "internvl", "llama")
CASES = [(family, "student") for family in STUDENTS] + [(family, "teacher") for family in TEACHERS]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_batch_is_its_rows(family, kind, tmp_path_factory):
    root = place_of(family, tmp_path_factory)
    questions = questions_of(root)
    together = ask(root / kind, questions, batch_size=len(questions))
    assert together == ask(root / kind, questions, batch_size=1)
    assert len({answer.text for answer in together.values()}) > 1
    assert all(answer.tokens <= ROOM and answer.stopped == (answer.tokens < ROOM) for answer in together.values())


@pytest.mark.parametrize("family", ["llama", "smolvlm", "qwen2_5_vl"])
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_a_bundle_says_what_its_student_says(family, backend, tmp_path_factory):
    root = place_of(family, tmp_path_factory)
    questions = questions_of(root)
    student = ask(root / "student", questions)
    found = ask(bundle_of(family, tmp_path_factory), questions, backend=backend, threads=1)
    assert found == student


def greedy_ids(model, arguments: dict, ends: Collection[int]) -> list[int]:
    """At most ROOM token ids, the last one an end where there is any: a loop over the whole prompt, without a cache."""
    new: list[int] = []
    with torch.inference_mode():
        while len(new) < ROOM and not (new and new[-1] in ends):
            new.append(int(model(**arguments).logits[0, -1].argmax()))
            arguments = arguments | {"input_ids": torch.cat([arguments["input_ids"], torch.tensor([new[-1:]])], 1)}
    return new


@pytest.mark.parametrize("family", ["llama", "smolvlm"])
def test_a_teacher_decodes_greedily_whatever_its_folder_says(family, tmp_path_factory, tmp_path):
    root = place_of(family, tmp_path_factory)
    folder = tmp_path / "teacher"
    shutil.copytree(root / "teacher", folder)
    path = folder / "generation_config.json"
    settings = {"do_sample": True, "temperature": 9.0, "repetition_penalty": 3.0, "min_new_tokens": 9}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    question = questions_of(root)[0]
    answerer = open_answerer(folder, Engine())
    ((_, found),) = answerer.answers([question], ROOM)
    inputs = answerer.processor.encode(question.prompt)
    model = load_teacher(read_model_folder(folder))
    rules = None if family == "llama" else PromptRules.from_config(model.config.to_dict())
    new = greedy_ids(model, hf_inputs(inputs, rules), answerer.processor.eos_token_ids)
    ended = new[-1] in answerer.processor.eos_token_ids
    assert found.text == answerer.processor.decode(new[:-1] if ended else new) and found.tokens == len(new)


def test_an_end_token_stops_a_row_and_not_the_batch(tmp_path_factory, tmp_path):
    root = place_of("llama", tmp_path_factory)
    questions = questions_of(root)
    student = open_answerer(root / "student", Engine(batch_size=len(questions)))
    whole = {question.id: answer for question, answer in student.answers(questions, ROOM)}
    prompt = student.processor.encode(next(question.prompt for question in questions if question.id == "text"))
    first = greedy_ids(load_student(root / "student"), hf_inputs(prompt, None), student.processor.eos_token_ids)
    end = next(token for token in first[1:] if student.processor.decode([token]).isascii())  # cuts no character
    folder = tmp_path / "student"
    shutil.copytree(root / "student", folder)
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"eos_token_id": [end]}))
    found = ask(folder, questions, batch_size=len(questions))
    assert found["text"].stopped and found["text"].tokens == first.index(end) + 1
    assert found["text"].text == student.processor.decode(first[: first.index(end)])
    for name, answer in whole.items():
        assert answer.text.startswith(found[name].text)


def test_identity(tmp_path_factory, tmp_path):
    root = place_of("smolvlm", tmp_path_factory)
    bundle = bundle_of("smolvlm", tmp_path_factory)
    copies = [tmp_path / "same", tmp_path / "template"]
    for copy in copies:
        shutil.copytree(root / "student", copy)
    template = copies[1] / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    engines = [
        (root / "student", {}),
        (root / "teacher", {}),
        (root / "student", {"dtype": "bfloat16"}),
        (bundle, {"backend": "torch"}),
        (bundle, {"backend": "onnxruntime"}),
        (copies[1], {}),
    ]
    found = [open_answerer(folder, Engine(**options)).identity for folder, options in engines]
    assert len(set(found)) == len(found)
    assert open_answerer(copies[0], Engine(batch_size=3)).identity == found[0]


def test_opening_loads_no_weights(tmp_path_factory, monkeypatch):
    root = place_of("llama", tmp_path_factory)

    def refuse(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(torch_answerer, "load_student", refuse)
    answerer = open_answerer(root / "student", Engine())
    assert answerer.identity and not list(answerer.answers([], ROOM))


def test_errors_name_the_question(tmp_path_factory):
    root, bundle = place_of("llama", tmp_path_factory), bundle_of("llama", tmp_path_factory)
    question = Question("clip", "What?", ("a",), video=root / "data" / "data.jsonl")
    for folder in (root / "student", bundle):
        with pytest.raises(InputError, match="question 'clip': the family llama takes no video"):
            ask(folder, [question])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, "is no bundle, student or teacher"),
        ("data", {}, "is no bundle, student or teacher"),
        ("student", {"backend": "onnxruntime"}, "backend 'onnxruntime'.*student folder.*expected auto or torch"),
        ("student", {"device": "nowhere"}, "--device; got 'nowhere'"),
        ("student", {"dtype": "int3"}, "--dtype; got 'int3'"),
        ("bundle", {"dtype": "float16"}, "--dtype for the bundle"),
        ("bundle", {"device": "cpu"}, "--device for the bundle"),
        ("bundle", {"backend": "abacus"}, "backend 'abacus'"),
    ],
)
def test_what_is_refused(name, options, message, tmp_path_factory):
    bundle_of("llama", tmp_path_factory)
    with pytest.raises(InputError, match=message):
        open_answerer(place_of("llama", tmp_path_factory) / name, Engine(**options))


def test_a_folder_needs_torch(tmp_path_factory, monkeypatch):
    def missing(module, *, needed_for, extra):
        raise MissingComponentError(module, needed_for=needed_for, extra=extra)

    monkeypatch.setattr(answerers, "require", missing)
    with pytest.raises(MissingComponentError, match=r"torch is needed for `linmu eval` of a student folder.*convert"):
        open_answerer(place_of("llama", tmp_path_factory) / "student", Engine())


def encoded(*lengths):
    return [(Question(str(n), "?", ("a",)), ModelInputs(np.zeros(n, np.int64), "")) for n in lengths]


def test_batches_are_of_similar_length_and_bounded():
    def sizes(*lengths, size=3):
        return [[len(inputs.input_ids) for _, inputs in batch] for batch in batches(encoded(*lengths), size)]

    assert sizes(9, 1, 5, 2, 8, 3, 7) == [[1, 2, 3], [5, 7, 8], [9]]
    long = torch_answerer.BATCH_TOKENS // 2
    assert sizes(long, long - 1, 10, long + 1) == [[10, long - 1], [long], [long + 1]]
    assert sizes(3 * long) == [[3 * long]]
    assert sizes() == []
