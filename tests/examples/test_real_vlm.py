"""The real model's data stay apart, its rounds train as single conversations would, and a stopped run goes on."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter

import numpy as np
import pytest

from examples.questions.stills import Question
from linmu.errors import InputError
from linmu.formats.data_folder import DataFolder
from tests.examples.real_vlm_files import write_sources, write_teacher
from tests.paths import ROOT

EXAMPLES = ROOT / "examples"
LAYERS = [-2, -1]


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The example modules, importable as when they are run as scripts."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    from real_vlm_clipart import load_clipart
    from real_vlm_scenes import Things
    from stamps_source import load_stamps

    stamps, clipart = write_sources(tmp_path_factory.mktemp("sources"))
    return Things([*load_stamps(stamps)[0], *load_clipart(clipart)])


@pytest.fixture(scope="module")
def data(things, tmp_path_factory):
    from real_vlm_data import write_set

    root = tmp_path_factory.mktemp("data")
    write_set(things, root / "train", "train", 1, 50)
    write_set(things, root / "test", "test", 101, 34)
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    from assemble_llava import SHORT_TEMPLATE

    return write_teacher(tmp_path_factory.mktemp("teacher"), SHORT_TEMPLATE, LAYERS)


@pytest.fixture(scope="module")
def opened(data, teacher):
    """Model, its rows and the features of the training data."""
    import torch
    import transformers as hf
    from real_vlm_batches import Rows
    from real_vlm_features import open_features

    model = hf.LlavaForConditionalGeneration.from_pretrained(teacher, dtype=torch.float32).eval()
    return model, Rows(teacher, model.config), open_features(data / "train", model, teacher, say=lambda _: None)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("crawfish2_bw_ganson", "crawfish"),
        ("contour_fox", "fox"),
        ("gatto_architetto_01", "cat"),
        ("hot_dog_juliane_krug_r", "hot dog"),
        ("van_gogh_s_sun_flower_en_01", None),
        ("acrobat", None),
        ("", None),
    ],
)
def test_names_of_clip_art(stem, name):
    from real_vlm_clipart import name_of

    assert name_of(stem) == name


def test_no_clip_art(tmp_path):
    from real_vlm_clipart import load_clipart

    with pytest.raises(InputError, match="no clip art"):
        load_clipart(tmp_path)


def test_every_question_has_phrasings_that_keep_its_names(things):
    from real_vlm_data import rounds
    from real_vlm_phrases import ways_to_ask

    names = {*things.names, "top left", "red star"}
    for round_ in rounds(things, "train", 3, 60):
        for question in round_.questions:
            ways = ways_to_ask(question.prompt)
            assert len(set(ways)) == len(ways) > 1, question
            for name in names:
                assert len({bool(re.search(rf"\b{name}\b", way)) for way in ways}) == 1, (name, ways)


def test_training_has_nothing_that_is_held_out(things):
    from real_vlm_scenes import held_out, makers, shapes

    kinds = makers(things)
    spelled: dict[str, set[str]] = {"train": set(), "test": set()}
    for split in spelled:
        for index in range(150):
            rng = np.random.default_rng([7, index])
            spelled[split] |= {kinds[name](rng, split).questions[0].answer for name in ("spelling",)}
            marks = shapes(rng, split).marks[0]
            cells = [(int((t + b) / 2 * 3) * 3 + int((x + r) / 2 * 3), *text.split()) for x, t, r, b, text in marks]
            assert any(held_out(*cell) for cell in cells) == (split == "test")
    assert not spelled["train"] & spelled["test"]


def test_answers_follow_from_the_marks(things):
    from real_vlm_data import rounds

    asked: Counter[str] = Counter()
    for round_ in rounds(things, "test", 5, 170):
        (question,) = round_.questions
        texts = [text for marks in round_.marks for *_, text in marks]
        asked[question.task] += 1
        if question.task in ("name", "side", "position", "color", "shape"):
            assert any(question.answer in text for text in texts), (question, texts)
        if question.task == "spell":
            assert question.answer.split() == texts
        if question.task in ("number", "handwriting"):
            assert list(question.answer) == texts
        if question.task == "things":
            assert question.answer == ("one", "two", "three", "four")[len(texts) - 1]
    assert {"name", "side", "spell", "number", "things", "count", "read", "handwriting"} <= set(asked)


def test_rounds_have_different_questions_and_few(data):
    folder = DataFolder.open(data / "train")
    by_pictures = Counter(sample.images for sample in folder.samples)
    assert max(by_pictures.values()) <= 5 < len(by_pictures)
    assert {sample.images[0].suffix for sample in folder.samples} == {".png"}


def test_the_same_seed_makes_the_same_data(things, data, tmp_path):
    from real_vlm_data import write_set

    write_set(things, tmp_path / "again" / "test", "test", 101, 34)
    for name in ("test/data.jsonl", "test.marks.jsonl", "test/media/000003-0.png"):
        assert (tmp_path / "again" / name).read_bytes() == (data / name).read_bytes()


def test_a_missing_package_is_named(tmp_path):
    from real_vlm_data import find_package

    with pytest.raises(InputError, match="apt-get download openclipart-png"):
        find_package(tmp_path, "openclipart-png")


def test_a_row_of_one_question_is_the_conversation_that_distillation_sees(data, teacher, opened):
    from linmu.processing.encode import encode_sample, model_processor

    _, rows, features = opened
    processor = model_processor(teacher)
    for asked in (features.rounds[0], next(item for item in features.rounds if len(item.pictures) > 1)):
        for number, sample in enumerate(asked.samples):
            row, expected = rows(asked, number, 1), encode_sample(sample, processor)
            assert row.ids.tolist() == expected.inputs.input_ids.tolist()
            assert (np.flatnonzero(row.labels != -100) + 1).tolist() == np.flatnonzero(expected.answer_mask).tolist()


def test_shared_pictures_give_the_losses_and_gradients_of_single_conversations(opened, data):
    import torch
    from real_vlm_batches import collated
    from real_vlm_model import answer_logits, summed_loss

    model, rows, features = opened
    chosen = [features.rounds[0], next(r for r in features.rounds if len(r.pictures) > 1), features.rounds[11]]
    batch = collated([rows(asked) for asked in chosen], features)
    weight = model.model.multi_modal_projector.linear_1.weight
    (together,) = torch.autograd.grad(summed_loss(model, batch), weight)
    alone, logits = torch.zeros_like(weight), []
    for asked in chosen:
        for number in range(len(asked.samples)):
            single = collated([rows(asked, number, 1)], features)
            logits.append(answer_logits(model, single).detach())
            alone += torch.autograd.grad(summed_loss(model, single), weight)[0]
    torch.testing.assert_close(answer_logits(model, batch).detach(), torch.cat(logits), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert int(batch.questions.max()) + 1 == sum(len(asked.samples) for asked in chosen)


def test_features_and_masks_are_the_models_own(opened, teacher):
    import torch
    from real_vlm_batches import collated
    from real_vlm_model import answer_logits

    from linmu.processing.encode import encode_sample, model_processor

    model, rows, features = opened
    asked = next(item for item in features.rounds if len(item.pictures) > 1)
    inputs = encode_sample(asked.samples[0], model_processor(teacher)).inputs
    pixels = torch.cat([torch.from_numpy(call["pixel_values"]) for call in inputs.vision_calls])
    with torch.no_grad():
        plain = model(input_ids=torch.from_numpy(inputs.input_ids)[None], pixel_values=pixels).logits[0]
        row = rows(asked, 0, 1)
        ours = answer_logits(model, collated([row], features))
    torch.testing.assert_close(ours, plain[row.labels != -100], rtol=0, atol=5e-3)  # features are kept in float16


def test_a_trained_tower_sees_what_the_cache_holds(opened):
    import torch
    from real_vlm_batches import collated
    from real_vlm_model import summed_loss

    model, rows, features = opened
    made = [rows(asked) for asked in features.rounds[:7]]
    live, kept = collated(made, features, live=True), collated(made, features)
    assert live.features is None and kept.pixels is None
    weight = model.model.vision_tower.embeddings.patch_embeddings.projection.weight
    (gradient,) = torch.autograd.grad(summed_loss(model, live), weight)
    assert gradient.abs().max() > 0
    with torch.no_grad():
        torch.testing.assert_close(summed_loss(model, live), summed_loss(model, kept), rtol=1e-3, atol=0)


def test_rounding_starts_from_the_weights_in_float32(opened):
    import torch
    from real_vlm_model import Masters

    layer = torch.nn.Linear(5, 3)
    before = layer.weight.detach().clone()
    masters = Masters([(layer.parameters(), 1e-2)])
    layer.bfloat16()
    assert torch.equal(masters.copies[0][0], before) and masters.live[0][0] is layer.weight
    layer(torch.ones(2, 5, dtype=torch.bfloat16)).sum().backward()
    masters.step([0.0], 1.0)
    assert torch.equal(masters.copies[0][0], before) and torch.equal(layer.weight, before.bfloat16())


def test_epochs_take_every_round_once():
    from real_vlm_batches import of_step

    taken = [i for step in range(14) for i in of_step(step, 35, 5, 3)]
    assert sorted(taken[:35]) == sorted(taken[35:]) == list(range(35))
    assert taken[:35] != taken[35:] and of_step(9, 35, 5, 3) == taken[45:50]
    assert len(of_step(0, 3, 8, 0)) == 8


def test_patches_are_named_after_the_marks_that_cover_them():
    from real_vlm_align import patch_names

    names = patch_names([(0.0, 0.0, 0.5, 0.25, "red star"), (0.9, 0.9, 0.93, 0.93, "A")], 4)
    assert names[:2] == ["red star"] * 2 and names[15] == "A" and names.count("") == 13


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(data, teacher, tmp_path):
    import torch
    from real_vlm_teacher import Run, Training

    plan = Training(steps=4, batch=6, frozen=1, thaw=0.5, align=3, every=2, measured=9)
    whole = Run(teacher, tmp_path / "whole", plan, lambda _: None)
    whole(data / "train", data / "test")

    class Killed(Exception):
        pass

    def killer(text):
        if text.startswith("step 2:"):
            raise Killed

    with pytest.raises(Killed):
        Run(teacher, tmp_path / "twice", plan, killer)(data / "train", data / "test")
    second = Run(teacher, tmp_path / "twice", plan, lambda _: None)
    accuracy = second(data / "train", data / "test")
    assert "all" in accuracy
    one, two = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "twice"))
    assert one["step"] == two["step"] == 4
    for first, other in zip(one["masters"]["copies"], two["masters"]["copies"], strict=True):
        for a, b in zip(first, other, strict=True):
            assert torch.equal(a, b)
    curves = [(tmp_path / name / "curve.csv").read_text().splitlines() for name in ("whole", "twice")]
    assert [[line.split(",")[0], *line.split(",")[2:4]] for line in curves[0]] == [
        [line.split(",")[0], *line.split(",")[2:4]] for line in curves[1]
    ]
    whole.publish(tmp_path / "teacher")
    assert {"tokenizer.json", "processor_config.json", "model.safetensors"} <= {
        file.name for file in (tmp_path / "teacher").iterdir()
    }


def test_the_measured_share_is_that_of_greedy_answers(data, teacher, opened):
    import torch
    from real_vlm_model import measured

    from linmu.tools.evaluate import Plan, evaluate

    model, rows, _ = opened
    from real_vlm_features import open_features

    test = open_features(data / "test", model, teacher, say=lambda _: None)
    with torch.no_grad():
        accuracy, loss = measured(model, rows, test, 12)
    assert accuracy["all"] == 0 and loss > 0  # a random model says nothing right
    found = evaluate(teacher, data / "test", plan=Plan(limit=12, max_new_tokens=6))
    assert found.micro.accuracy.value == accuracy["all"]


def test_parts_go_on_and_count_their_time(tmp_path):
    import real_vlm

    parts = real_vlm.Parts(tmp_path / "times.json")
    with pytest.raises(KeyError):
        parts("first", lambda: {}["missing"])
    assert not json.loads((tmp_path / "times.json").read_text())["first"]["done"]
    again = real_vlm.Parts(tmp_path / "times.json")
    calls = []
    for _ in range(2):
        again("first", lambda: calls.append(1) or {"n": 1})
    assert len(calls) == 1 and again.entries["first"]["outcome"] == {"n": 1} and "first" in again.table()


def test_the_student_recipe_is_read():
    from linmu.distill.recipe import load_recipe

    assert [stage.number for stage in load_recipe(EXAMPLES / "real_vlm_student.yaml").stages] == [1, 3]


def test_questions_of_a_test_come_from_every_task_alike():
    from real_vlm_scenes import Round, chosen

    questions = tuple(Question("count", f"How many {n}?", "1") for n in range(9)) + (
        Question("color", "Which?", "red"),
    )
    first = Counter(
        chosen(np.random.default_rng(seed), Round((), questions, ()), 2).questions[1].task for seed in range(40)
    )
    assert set(first) == {"count", "color"}
    for seed in range(20):
        both = chosen(np.random.default_rng(seed), Round((), questions, ()), 2).questions
        assert {question.task for question in both} == {"count", "color"}
