from __future__ import annotations

import json

import pytest

from linmu.distill.recipe import BUILT_IN, GROUPS, Recipe, load_recipe, parse_settings, parse_stages
from linmu.errors import InputError

STAGE = "{number: 1, name: a, steps: 5, train: {flex_new: 1e-3}, losses: {layer: 1}"


def written(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_recipes_have_three_stages_and_survive_json(name):
    recipe = load_recipe(name)
    assert sorted({stage.number for stage in recipe.stages}) == [1, 2, 3]
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize("name", BUILT_IN)
def test_stages_of_built_in_recipes_train_what_the_paper_says(name):
    stages = load_recipe(name).stages
    groups = {number: set().union(*(s.train for s in stages if s.number == number)) for number in (1, 2, 3)}
    assert groups[1] == {"flex_new", "flex_inherited"}
    assert {"swin", "alpha"} <= groups[2] and "lora" not in groups[2]
    assert "lora" in groups[3]
    assert [stage.losses for stage in stages if stage.number == 1] == [{"layer": 1.0}]
    assert all("logits" in stage.losses for stage in stages if stage.number == 3)


def test_numbers_without_a_point_are_numbers(tmp_path):
    recipe = load_recipe(written(tmp_path, f"stages: [{STAGE}}}]"))
    assert recipe.stages[0].train == {"flex_new": 0.001}


def test_settings_reach_keys_of_the_recipe_and_of_stages():
    recipe = load_recipe(
        "small",
        {
            "batch_size": "4",
            "answers.lora.rank": "3",
            "flex.train.swin": "1e-4",
            "hidden.stop.patience": "7",
            "windows.schedule": "linear",
        },
    )
    by_name = {stage.name: stage for stage in recipe.stages}
    assert recipe.batch_size == 4
    assert by_name["answers"].lora.rank == 3 and by_name["answers"].lora.alpha == 64
    assert by_name["flex"].train == {"flex_new": 1e-3, "flex_inherited": 3e-4, "swin": 1e-4}
    assert by_name["hidden"].stop.patience == 7 and by_name["hidden"].stop.min_improvement == 0
    assert by_name["windows"].schedule == "linear"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: []", ("stages", "at least one stage")),
        (f"stages: [{STAGE}}}]\nspeed: 9", ("unknown key", "speed")),
        (f"stages: [{STAGE}, speed: 9}}]", ("stages[0]", "speed")),
        (f"stages: [{STAGE}, stop: {{wait: 3}}}}]", ("stages[0].stop", "wait")),
        (f"stages: [{STAGE}, schedule: square}}]", ("stages[0].schedule", "square", "cosine")),
        (f"stages: [{STAGE}, warmup: 3}}]", ("stages[0].warmup", "3")),
        (f"stages: [{STAGE}, temperature: 0}}]", ("stages[0].temperature",)),
        (f"stages: [{STAGE}}}, {STAGE}}}]", ("stages", "names that differ")),
        (f"batch_size: many\nstages: [{STAGE}}}]", ("batch_size", "many", "whole number")),
        (f"batch_size: true\nstages: [{STAGE}}}]", ("batch_size", "True")),
        (f"save_every: 30\nstages: [{STAGE}}}]", ("save_every", "multiple of log_every")),
        (f"loss_on: prompt\nstages: [{STAGE}}}]", ("loss_on", "prompt")),
        ("stages: [{number: 4, name: a, steps: 5, train: {swin: 1}, losses: {layer: 1}}]", ("number", "4")),
        ("stages: [{number: 1, name: a, steps: 5, train: {wings: 1}, losses: {layer: 1}}]", ("train", "wings")),
        ("stages: [{number: 1, name: a, steps: 5, train: {swin: 1}, losses: {mse: 1}}]", ("losses", "mse")),
        ("stages: [{number: 1, name: a, steps: 5, train: {swin: .inf}, losses: {ce: 1}}]", ("train.swin", "number")),
        ("stages: [{number: 1, name: a, steps: 5, train: {lora: 1}, losses: {ce: 1}}]", ("lora",)),
        ("stages: [{number: 1, name: ../a, steps: 5, train: {swin: 1}, losses: {ce: 1}}]", ("name",)),
        ("stages: [{number: 1, name: a, train: {swin: 1}, losses: {ce: 1}}]", ("missing", "steps")),
        ("stages: [{number: 1, name: a, steps: 5, train: {mlp: 1}, losses: {layer: 1}}]", ("train", "mlp", "mixers")),
        ("- a list", ("keys and values",)),
        ("a: [", ("not YAML",)),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, words):
    with pytest.raises(InputError) as caught:
        load_recipe(written(tmp_path, text))
    assert "mine.yaml" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_settings_that_lead_nowhere():
    for name, word in (("nothing.steps", "nothing"), ("flex.steps.more", "steps"), ("flex.stairs", "stairs")):
        with pytest.raises(InputError, match=word):
            load_recipe("small", {name: "3"})
    with pytest.raises(InputError, match="one of small, large"):
        load_recipe("medium")


def test_texts_of_the_command_line():
    assert parse_settings(["a.b=1", "c=x=y"]) == {"a.b": "1", "c": "x=y"}
    assert parse_stages("all") == (1, 2, 3) and parse_stages("3, 1") == (3, 1)
    for call, text in ((parse_settings, ["a"]), (parse_settings, ["=3"]), (parse_stages, "4"), (parse_stages, "")):
        with pytest.raises(InputError):
            call(text)


def test_groups_are_those_of_the_table():
    from linmu.distill.groups import PATTERNS

    assert set(PATTERNS) == set(GROUPS)
