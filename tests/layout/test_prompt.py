from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from linmu.errors import InputError
from linmu.layout import MediaGrid, PromptRules, media_from_grids, media_of_batch, prompt_layout
from linmu.layout.vision_grid import vision_facts
from linmu.model.modeling import teacher_config
from tests.model.students import shared_student
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs, tiny_model

IMAGE, VIDEO = 261, 262  # ids of the tiny Qwen tokenizers
TILE_SIDES = {"smolvlm": 4, "idefics3": 3, "internvl": 3, "llava": 3, "llava_dinov2": 4}
QWEN = ("qwen2_5_vl", "qwen3_vl")
GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


@pytest.fixture(scope="module")
def tiny():
    """Models are made once per module."""
    made: dict = {}
    return lambda family: made.setdefault(family, tiny_model(family))


def rules_of(model) -> PromptRules:
    return PromptRules.from_config(model.config.to_dict())


@pytest.mark.parametrize("family", VISION_NAMES)
def test_a_students_own_config_says_what_its_teachers_does(family):
    model = shared_student(family)[0]
    config = model.config.to_dict()
    assert config["model_type"].startswith("linmu_") and "linmu" in config
    assert PromptRules.from_config(config) == model._prompt_rules
    assert vision_facts(config) == vision_facts(teacher_config(model.config))


def teacher_positions(model, ids: np.ndarray, **grids) -> tuple[np.ndarray, int]:
    """Positions [3, S] and the next position by transformers' get_rope_index."""
    row = torch.tensor(ids)[None]
    kinds = (row == IMAGE).int() + 2 * (row == VIDEO).int()
    tensors = {key: torch.as_tensor(value) for key, value in grids.items()}
    positions, delta = model.model.get_rope_index(row, mm_token_type_ids=kinds, **tensors)
    return positions[:, 0].numpy(), int(delta[0]) + len(ids)


def check_positions(model, ids: np.ndarray, **grids) -> None:
    rules = rules_of(model)
    layout = prompt_layout(rules, ids, media_from_grids(rules, ids, **grids), max_span_frames=2)
    expected, following = teacher_positions(model, ids, **grids)
    np.testing.assert_array_equal(layout.position_ids, expected)
    assert layout.next_position == following
    assert layout.position_ids.dtype == np.int64


@pytest.mark.parametrize("kind", ["text", "image", "two_images", "video"])
@pytest.mark.parametrize("family", QWEN)
def test_positions_of_processed_prompts_are_the_teachers(tiny, family, kind):
    model, tokenizer = tiny(family)
    inputs = tiny_inputs(family, model, tokenizer, kind)
    check_positions(model, inputs["input_ids"][0].numpy(), **{k: inputs[k] for k in GRIDS if k in inputs})


@pytest.mark.parametrize("seconds", [0.5, 0.9, 1.3, 7.0])
def test_qwen2_5_positions_of_image_video_and_text(tiny, seconds):
    ids = np.array([9, 9, *[IMAGE] * 6, 9, *[VIDEO] * 40, 9, 9, 9, *[IMAGE] * 2, *[9], *[VIDEO] * 6])
    check_positions(
        tiny("qwen2_5_vl")[0],
        ids,
        image_grid_thw=[[1, 4, 6], [1, 2, 4]],
        video_grid_thw=[[10, 4, 4], [1, 4, 6]],
        second_per_grid_ts=[seconds, 1.0],
    )


def test_qwen3_positions_restart_at_every_frame(tiny):
    frames = [9, 9, *[VIDEO] * 6] * 3
    ids = np.array([*frames, 9, *[IMAGE] * 8, 9, 9, *[VIDEO] * 2, 9, *[VIDEO] * 2, 9])
    check_positions(tiny("qwen3_vl")[0], ids, image_grid_thw=[[1, 8, 4]], video_grid_thw=[[3, 4, 6], [2, 2, 4]])


def test_a_video_is_cut_into_spans_with_text_between_frames(tiny):
    rules = rules_of(tiny("qwen3_vl")[0])
    ids = np.array([9, *[VIDEO] * 6] * 5)
    layout = prompt_layout(rules, ids, media_from_grids(rules, ids, video_grid_thw=[[5, 4, 6]]), max_span_frames=2)
    assert [span.grid for span in layout.spans] == [(2, 2, 3), (2, 2, 3), (1, 2, 3)]
    np.testing.assert_array_equal(layout.spans[1].positions, [*range(15, 21), *range(22, 28)])
    np.testing.assert_array_equal(
        np.concatenate([span.positions for span in layout.spans]), np.flatnonzero(ids == VIDEO)
    )


@pytest.mark.parametrize("kind", ["image", "two_images", "video"])
@pytest.mark.parametrize("family", TILE_SIDES)
def test_tile_families_get_one_square_span_per_tile(tiny, family, kind):
    model, tokenizer = tiny(family)
    inputs = tiny_inputs(family, model, tokenizer, kind)
    rules, ids = rules_of(model), inputs["input_ids"][0].numpy()
    layout = prompt_layout(rules, ids, media_from_grids(rules, ids), max_span_frames=8)
    tiles = inputs["pixel_values"].shape[-4] if inputs["pixel_values"].ndim == 5 else len(inputs["pixel_values"])
    side = TILE_SIDES[family]
    assert [span.grid for span in layout.spans] == [(1, side, side)] * tiles
    found = np.concatenate([span.positions for span in layout.spans])
    np.testing.assert_array_equal(found, np.flatnonzero(ids == rules.image_token_id))
    np.testing.assert_array_equal(layout.position_ids, np.arange(len(ids))[None])
    assert layout.next_position == len(ids)


def test_frames_of_a_tile_family_can_form_one_span(tiny):
    rules = rules_of(tiny("internvl")[0])
    ids = np.array([9, *[rules.image_token_id] * 9] * 3)
    layout = prompt_layout(rules, ids, [MediaGrid("video", ((3, 3, 3),))], max_span_frames=8)
    assert [span.grid for span in layout.spans] == [(3, 3, 3)]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_text_has_no_spans_in_any_family(tiny, family):
    model, tokenizer = tiny(family)
    rules = rules_of(model)
    ids = tiny_inputs(family, model, tokenizer, "text")["input_ids"][0]
    layout = prompt_layout(rules, ids, media_from_grids(rules, ids), 8)
    assert layout.spans == () and layout.next_position == len(ids)
    np.testing.assert_array_equal(
        layout.position_ids, np.tile(np.arange(len(ids)), (1 if rules.facts.rope == "plain" else 3, 1))
    )


def test_every_prompt_of_a_batch_takes_its_own_grids(tiny):
    rules = rules_of(tiny("qwen2_5_vl")[0])
    ids = np.array([[0, 9, IMAGE, IMAGE, 9, 9], [9, *[VIDEO] * 2, 9, IMAGE, 9], [9] * 6])
    grids = {"image_grid_thw": [[1, 2, 4], [1, 2, 2]], "video_grid_thw": [[2, 2, 2]], "second_per_grid_ts": [0.5]}
    assert media_of_batch(rules, ids, **grids) == [
        (MediaGrid("image", ((1, 1, 2),)),),
        (MediaGrid("video", ((2, 1, 1),), 0.5), MediaGrid("image", ((1, 1, 1),))),
        (),
    ]


def test_mismatches_are_refused_in_one_line(tiny):
    qwen, tiles = rules_of(tiny("qwen2_5_vl")[0]), rules_of(tiny("internvl")[0])
    ids = np.array([9, *[IMAGE] * 6, 9])
    short, long = MediaGrid("image", ((1, 1, 3),)), MediaGrid("image", ((1, 2, 3),))
    calls = {
        "do not match": lambda: prompt_layout(qwen, ids, [short], 8),
        "another kind": lambda: prompt_layout(qwen, ids, [MediaGrid("video", ((1, 2, 3),))], 8),
        "not consecutive": lambda: prompt_layout(qwen, np.insert(ids, 3, 9), [long], 8),
        "between the frames": lambda: prompt_layout(
            qwen, [*[VIDEO] * 3, 9, *[VIDEO] * 3], [MediaGrid("video", ((2, 1, 3),))], 8
        ),
        "without a grid": lambda: media_from_grids(qwen, ids),
        "without tokens": lambda: media_from_grids(qwen, ids, image_grid_thw=[[1, 4, 6], [1, 2, 2]]),
        "divisible": lambda: media_from_grids(qwen, ids, image_grid_thw=[[1, 3, 6]]),
        "one per video": lambda: media_from_grids(
            qwen, [VIDEO], video_grid_thw=[[1, 2, 2]], second_per_grid_ts=[1.0, 2.0]
        ),
        "multiple of 9": lambda: media_from_grids(tiles, [tiles.image_token_id] * 10),
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_rules_survive_json_and_a_saved_config(tiny, family, tmp_path):
    model, _ = tiny(family)
    rules = rules_of(model)
    assert PromptRules.from_json(json.loads(json.dumps(rules.to_json()))) == rules
    model.config.save_pretrained(tmp_path)
    assert PromptRules.from_config(json.loads((tmp_path / "config.json").read_text())) == rules


@pytest.mark.parametrize("family", [name for name in VISION_NAMES if name != "llava_dinov2"])
def test_omitted_settings_are_transformers_defaults(tiny, family):
    cls = type(tiny(family)[0].config)
    # The Idefics3 defaults alone (7 x 7 patches, shuffled 2 x 2) make no square tile.
    vision = {"vision_config": {"image_size": 256}} if family in ("smolvlm", "idefics3") else {}
    assert PromptRules.from_config({"model_type": family, **vision}) == PromptRules.from_config(cls(**vision).to_dict())


def test_dinov2_crops_smaller_than_its_position_table_follow_image_seq_length():
    config = {
        "model_type": "llava",
        "image_seq_length": 256,
        "image_token_index": 7,
        "vision_feature_layer": -1,
        "vision_config": {"model_type": "dinov2", "image_size": 518, "patch_size": 14},
    }
    assert PromptRules.from_config(config).tile == (1, 16, 16)


def test_bad_rules_are_refused():
    full = {"model_type": "llava", "vision_feature_select_strategy": "full"}
    with pytest.raises(InputError, match="square"):
        PromptRules.from_config(full)
    with pytest.raises(InputError, match="tower"):
        PromptRules.from_config({"model_type": "llava", "vision_config": {"model_type": "vivit"}})
    with pytest.raises(InputError, match="not supported"):
        PromptRules.from_config({"model_type": "gpt2"})
    with pytest.raises(InputError, match="unknown prompt rule"):
        PromptRules.from_json({"family": "llama", "colour": 1})
    with pytest.raises(InputError, match="family"):
        PromptRules.from_json({})
