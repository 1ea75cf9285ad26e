"""The teacher answers what the data leaves out: as a loop of its own says, kept, resumed, never another teacher's."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from linmu.cli import main
from linmu.distill import answers as answers_module
from linmu.distill.answers import AnsweringTeacher, AnswerRules, answer_missing, open_data
from linmu.distill.answers_file import TeacherAnswer, append, read_answers
from linmu.distill.run import distill
from linmu.errors import InputError
from linmu.evaluation.answerers import Answer
from linmu.formats.data_folder import write_data_folder
from linmu.formats.model_files import read_model_folder
from linmu.formats.weights_hash import student_weights_hash
from linmu.layout import PromptRules
from linmu.model.answerer import TorchAnswerer
from linmu.model.folders import load_teacher
from linmu.model.hf_inputs import hf_inputs
from linmu.processing.encode import encode_sample, model_processor
from tests.distill.support import items, places, short_recipe, weights

GREEDY = AnswerRules("greedy", 5, 0, False, 400)
SAMPLED = AnswerRules("sampled", 5, 3, False, 400)


def quiet(_):
    return None


def unlabelled(family, count, first=0):
    """Samples of which the first has an answer, the second is plain text, and the others have none."""
    for number, (line, media) in enumerate(items(family, count, first)):
        if number == 1:
            line, media = {"prompt": "a text as it stands", "answer": ""}, {}
        elif number > 1:
            del line["answer"]
        yield line, media


@pytest.fixture(scope="module", params=["llama", "smolvlm"])
def place(request, tmp_path_factory):
    root = places(request.param, tmp_path_factory)
    if not (root / "bare").exists():
        write_data_folder(root / "bare", unlabelled(request.param, 13))
        write_data_folder(root / "bare-held", unlabelled(request.param, 5, 100))
    return root


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(answers_module, "BATCH_SIZE", 3)
    monkeypatch.setattr(answers_module, "LINE_SECONDS", 0.0)


def answered(root, folder, rules=GREEDY, say=quiet, names=("bare",), teacher_hash=None):
    """The data folders with answers."""
    teacher, processor = root / "teacher", model_processor(root / "student")
    found = [open_data(root / name, rules.source) for name in names]
    name = student_weights_hash(teacher) if teacher_hash is None else teacher_hash
    folder.mkdir(exist_ok=True)
    return answer_missing(found, folder, AnsweringTeacher(teacher, name, processor, rules), say)


def spoken(root, sample, tokens):
    """What the teacher says by a loop of whole passes in float64, the likeliest token each time."""
    model = load_teacher(read_model_folder(root / "teacher")).double().eval()
    processor = model_processor(root / "student")
    inputs, ids = processor.encode(sample.prompt, sample.images, sample.video), []
    rules = PromptRules.from_config(model.config.to_dict()) if sample.images else None
    media = {} if rules is None else hf_inputs(inputs, rules)
    media = {name: value.double() for name, value in media.items() if name == "pixel_values"}
    with torch.no_grad():
        for _ in range(tokens):
            whole = torch.tensor([[*map(int, inputs.input_ids), *ids]])
            logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **media).logits[0, -1]
            logits[list(processor.media_token_ids)] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] in processor.eos_token_ids:
                return processor.decode(ids[:-1])
    return processor.decode(ids)


def test_greedy_answers_are_the_teachers(place, tmp_path, small_batches):
    (data,) = answered(place, tmp_path)
    before = open_data(place / "bare", "greedy").samples
    kept = {answer.id: answer for answer in read_answers(tmp_path).values()}
    assert kept.keys() == {sample.id for sample in before[2:]}
    assert {name: answer.text.strip() for name, answer in kept.items()} == {
        sample.id: spoken(place, sample, GREEDY.tokens).strip() for sample in before[2:]
    }
    assert data.samples[:2] == before[:2]
    for sample in data.samples[2:]:
        assert sample.answer == kept[sample.id].text and sample.ended == kept[sample.id].ended
    assert len(data) == 2 + sum(answer.unusable is None for answer in kept.values())


def test_sampled_answers_follow_the_seed_alone(place, tmp_path, small_batches):
    (data,) = answered(place, tmp_path / "a", SAMPLED)
    answers_module.BATCH_SIZE = 1
    (alone,) = answered(place, tmp_path / "b", SAMPLED)
    assert data.samples == alone.samples and data.fingerprint == alone.fingerprint
    (other,) = answered(place, tmp_path / "c", replace(SAMPLED, seed=4))
    texts = [{sample.answer for sample in item.samples[2:]} for item in (data, other)]
    assert len(texts[0]) > 5 and texts[0] != texts[1] and data.fingerprint != other.fingerprint


@pytest.mark.parametrize("rules", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_killed_run_goes_on_to_the_same_answers(place, tmp_path, small_batches, monkeypatch, rules):
    names, said = ("bare", "bare-held"), []
    whole = answered(place, tmp_path / "whole", rules, said.append, names)
    assert "14/14 samples" in said[-3] and said[-3].endswith("0 s left") and "the teacher answered" in said[-1]

    def crash(text):
        if "6/14 samples" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answered(place, tmp_path / "killed", rules, crash, names)
    path = tmp_path / "killed" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    path.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # in the middle of a line, and of a batch
    real, batches = TorchAnswerer.generate, []
    monkeypatch.setattr(TorchAnswerer, "generate", lambda self, *args: batches.append(args) or real(self, *args))
    assert answered(place, tmp_path / "killed", rules, quiet, names) == whole
    assert [len(batch[0]) for batch in batches] == [3, 3, 2, 3]
    expected = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    assert path.read_bytes() == expected
    monkeypatch.setattr(answers_module, "TorchAnswerer", None)  # all answers are there: no teacher is loaded
    said.clear()
    assert answered(place, tmp_path / "killed", rules, said.append, names) == whole
    assert len(said) == 2 and "prompts are read" not in said[0]


def test_answers_of_others_are_never_used(place, tmp_path, monkeypatch):
    answered(place, tmp_path)
    loaded = []
    monkeypatch.setattr(answers_module, "TorchAnswerer", lambda *args: loaded.append(args) or TorchAnswerer(*args))
    (mine,) = answered(place, tmp_path)
    assert not loaded
    for rules in (SAMPLED, replace(GREEDY, tokens=4), replace(SAMPLED, seed=8), replace(GREEDY, max_tokens=399)):
        answered(place, tmp_path, rules)
    (other,) = answered(place, tmp_path, teacher_hash="another")
    assert len(loaded) == 5 and other.fingerprint != mine.fingerprint
    assert len({answer.key for answer in read_answers(tmp_path).values()}) == 6
    (tmp_path / "answers.jsonl").write_text('{"text": "yes"}\n')
    with pytest.raises(InputError, match=r"answers.jsonl, line 1: no answer of a teacher"):
        read_answers(tmp_path)


def test_answers_of_several_processes_are_read_together(tmp_path):
    rows = [TeacherAnswer("k", str(number), "a\u2028ß", True) for number in range(3)]
    append(tmp_path / "answers.jsonl", rows[:2])
    append(tmp_path / "answers-1.jsonl", rows[2:])
    assert read_answers(tmp_path) == {("k", str(number)): rows[number] for number in range(3)}
    append(tmp_path / "answers.jsonl", [replace(rows[0], text="later")])
    assert read_answers(tmp_path)["k", "0"] == rows[0]  # what training may have seen stays


def test_long_prompts_come_in_smaller_batches(place, tmp_path, monkeypatch):
    sizes, real = [], TorchAnswerer.generate
    generate = lambda self, batch, *rest: sizes.append([len(x.input_ids) for x in batch]) or real(self, batch, *rest)  # noqa: E731
    monkeypatch.setattr(TorchAnswerer, "generate", generate)
    monkeypatch.setattr(answers_module, "BATCH_TOKENS", 100)
    answered(place, tmp_path)
    lengths = sum(sizes, [])
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == 11
    assert all(len(batch) == 1 or len(batch) * (batch[0] + GREEDY.tokens) <= 100 for batch in sizes)
    assert len({len(batch) for batch in sizes}) > 1


def test_a_full_disk(tmp_path):
    (tmp_path / "answers.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="disk full while writing .*answers.jsonl"):
        append(tmp_path / "answers.jsonl", [TeacherAnswer("k", "a", "yes", True)])
    with pytest.raises(InputError, match="cannot write .*answers-1.jsonl; got Is a directory"):
        (tmp_path / "answers-1.jsonl").mkdir()
        append(tmp_path / "answers-1.jsonl", [TeacherAnswer("k", "a", "yes", True)])


def test_an_answer_that_was_cut_off_teaches_no_end(place, tmp_path, monkeypatch):
    def generate(self, batch, *_):
        texts = [Answer("yes", 3, True), Answer("yes", 3, False), Answer(" \n", 3, True), Answer("no\ufdd0", 3, True)]
        return [texts[number % 4] for number in range(len(batch))]

    said, processor = [], model_processor(place / "student")
    monkeypatch.setattr(TorchAnswerer, "generate", generate)
    (data,) = answered(place, tmp_path, say=said.append)
    assert {sample.ended for sample in data.samples[2:]} == {True, False}
    for sample in data.samples[2:]:
        encoded = encode_sample(sample, processor)
        ids = encoded.inputs.input_ids[encoded.answer_mask]
        assert processor.decode(ids).strip() == "yes" and (ids[-1] in processor.eos_token_ids) == sample.ended
    counts = [sum(number % 4 == kind for number in range(11)) for kind in range(4)]
    assert len(data) == 2 + counts[0] + counts[1]
    assert said[-1].startswith(f"the teacher answered 6 of 13 samples of {data.folder}, {counts[1]} cut off at the ")
    assert "; 5 left out (" in said[-1]
    reasons = {answer.unusable for answer in read_answers(tmp_path).values()}
    assert None in reasons and "empty" in reasons and any("noncharacter" in str(reason) for reason in reasons)


def test_what_is_learned_is_what_was_said(place, tmp_path, monkeypatch):
    """The space that a template puts before an answer is the template's, other spaces are the answer's."""
    processor = model_processor(place / "student")
    sample = open_data(place / "data", "data").samples[0]

    def learned(text):
        encoded = encode_sample(replace(sample, answer=text), processor)
        return processor.decode(encoded.inputs.input_ids[encoded.answer_mask])

    spoken_texts = [learned("yes"), learned("  yes")]
    replies = [Answer(spoken_texts[0], 4, True), Answer(spoken_texts[1], 5, True)]
    monkeypatch.setattr(TorchAnswerer, "generate", lambda self, batch, *_: replies)
    write_data_folder(tmp_path / "data", [({"prompt": "one two"}, {}), ({"prompt": "one"}, {})])
    (data,) = answered(place, tmp_path / "out", names=(tmp_path / "data",))
    assert [learned(sample.answer) for sample in data.samples] == spoken_texts


def test_a_teacher_that_says_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(TorchAnswerer, "generate", lambda self, batch, *_: [Answer("", 1, True)] * len(batch))
    write_data_folder(tmp_path / "data", [({"prompt": "one"}, {}), ({"prompt": "one two"}, {})])
    with pytest.raises(InputError, match="answers no sample of .*got 2 empty"):
        answered(place, tmp_path / "out", names=(tmp_path / "data",))


def test_what_is_wrong_is_said_before_the_first_answer(place, tmp_path, monkeypatch):
    monkeypatch.setattr(answers_module, "TorchAnswerer", None)
    with pytest.raises(InputError, match=r"leaves no room.*--answer-tokens.*max_tokens=\d+"):
        answered(place, tmp_path, replace(GREEDY, max_tokens=12))
    with pytest.raises(InputError, match="--answers; got 'maybe'; expected one of data, greedy, sampled"):
        replace(GREEDY, source="maybe")
    with pytest.raises(InputError, match="--answer-tokens; got 0"):
        replace(GREEDY, tokens=0)
    with pytest.raises(InputError, match=r'line 3: no "answer" \(10 more lines have none\).*fix: .*--answers greedy'):
        open_data(place / "bare", "data")
    assert not (tmp_path / "answers.jsonl").exists()
    assert answered(place, tmp_path, replace(GREEDY, source="data"), names=("data",))  # nothing is missing


def test_a_run_on_data_without_answers(place, tmp_path, small_batches):
    folders, held = [place / name for name in ("student", "teacher", "bare")], place / "bare-held"

    def go(out, **options):
        options = {"recipe": short_recipe(2), "answers": "sampled", "answer_tokens": 5, "say": quiet, **options}
        return distill(*folders, out, stages=[3], validation=held, **options)

    report = go(tmp_path / "whole")

    def crash(text):
        if "6/14 samples" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "out", say=crash)
    with pytest.raises(InputError, match="started with another answers; got greedy; expected sampled"):
        go(tmp_path / "out", resume=True, answers="greedy")
    with pytest.raises(InputError, match="started with another answer_tokens; got 6; expected 5"):
        go(tmp_path / "out", resume=True, answer_tokens=6)
    go(tmp_path / "out", resume=True)
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    cached = go(tmp_path / "cached", cache=tmp_path / "cache")
    assert cached.stages[0].last_loss == pytest.approx(report.stages[0].last_loss, rel=1e-3)


def test_runs_of_versions_without_answers_go_on(place, tmp_path):
    options = {"recipe": short_recipe(2), "stages": [1], "say": quiet}
    folders = (place / "student", place / "teacher", place / "data", tmp_path / "out")
    distill(*folders, **options)
    path = tmp_path / "out" / "training" / "run.json"
    run = json.loads(path.read_text())
    assert run.pop("answers") == "data" and run.pop("answer_tokens") is None
    path.write_text(json.dumps(run))
    distill(*folders, resume=True, **options)
    with pytest.raises(InputError, match="started with another answer"):
        distill(*folders, resume=True, answers="greedy", **options)


def test_the_command_line(place, tmp_path, capsys):
    base = ["distill", str(place / "student"), "--teacher", str(place / "teacher"), "--data", str(place / "bare")]
    out = ["-o", str(tmp_path / "out")]
    settings = ["--set", "batch_size=4", "--set", "save_every=0", "--set", "log_every=1", "--set", "flex.steps=1"]
    for more, words in (
        ([], "--answers greedy"),
        (["--answers", "no"], "expected one of data, greedy, sampled"),
        (["--answers", "greedy", "--answer-tokens", "0"], "--answer-tokens; got 0"),
    ):
        assert main([*base, *out, *more]) == 2
        found = capsys.readouterr().err
        assert words in found and found.count("error:") == 1
    assert not (tmp_path / "out").exists()
    assert main([*base, *out, *settings, "--stage", "1", "--answers", "greedy", "--answer-tokens", "3"]) == 0
    assert "the teacher answered" in capsys.readouterr().err
    assert (tmp_path / "out" / "training" / "answers.jsonl").is_file()
