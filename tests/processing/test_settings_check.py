from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from linmu.errors import BundleError, InputError
from linmu.processing.settings import to_json
from linmu.processing.settings_file import read_settings
from tests.processing.support import picture, tiny_pair
from tests.tiny import tiny_video

VALUES = [-1, 0, 7, 2**40, 10**400, 1e-300, 1e300, "", "x", None, [], {}, [0] * 3, [1] * 9]


def leaves(data, path=()):
    """Every place of a JSON document that is no object."""
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(data, path, value):
    return {**data, path[0]: changed(data[path[0]], path[1:], value) if len(path) > 1 else value}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "internvl", "llava", "llama"])
def test_any_value_is_used_or_refused_in_one_line(family, tmp_path):
    """Every value of processor.json replaced by many others: a prompt is made, or an InputError says what is wrong."""
    video = {"size": {"height": 84, "width": 84}} if family == "internvl" else None
    _, ours = tiny_pair(family, tmp_path, video)
    path, data = tmp_path / "bundle" / "processor.json", to_json(ours.settings)
    image, video = picture(31, 23), tiny_video(frames=3, size=(40, 30)) if ours.settings.video is not None else None
    images = [image] if ours.settings.image is not None else []
    used = refused = 0
    for place in leaves(data):
        for value in VALUES:
            path.write_text(json.dumps(changed(data, place, value)))
            try:
                made = replace(ours, settings=read_settings(path)).encode("what?", images, video)
                used += 1
                assert all(np.isfinite(call["pixel_values"]).all() for call in made.vision_calls), (place, value)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 700
    assert used > 20 and refused > 100


@pytest.mark.parametrize(
    ("family", "where", "value", "said"),
    [
        ("smolvlm", ("image", "resample"), 77, "Pillow's number of a filter"),
        ("smolvlm", ("image", "std"), [0.5, 0.0, 0.5], "three numbers, one per colour, 1e-09"),
        ("smolvlm", ("image", "mean"), [0.5], "one per colour"),
        ("smolvlm", ("tokens", "tile_grid"), [], "2 counts from 1"),
        ("smolvlm", ("tokens", "fake_image"), None, "a text for smolvlm"),
        ("smolvlm", ("image", "longest_edge"), 2**20, "1 to 4096"),
        ("smolvlm", ("video", "fps"), 0.0, "more than 0"),
        ("smolvlm", ("image", "rescale_factor"), 2**60, "float"),
        ("qwen2_5_vl", ("image", "min_pixels"), 2**30, "at most max_pixels"),
        ("qwen2_5_vl", ("tokens", "tile_grid"), [2, 2], "0 counts"),
        ("internvl", ("image", "max_tiles"), 2**20, "1 to 256"),
        ("llava", ("image", "crop_height"), 0, "height and width of a crop"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else str(value)[:20],
)
def test_values_that_no_model_has(family, where, value, said, tmp_path):
    _, ours = tiny_pair(family, tmp_path)
    path = tmp_path / "bundle" / "processor.json"
    path.write_text(json.dumps(changed(to_json(ours.settings), where, value)))
    with pytest.raises(BundleError, match=where[-1]) as caught:
        read_settings(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(("family", "other"), [("smolvlm", "llava"), ("qwen3_vl", "internvl"), ("llama", "llava")])
def test_settings_of_another_family(family, other, tmp_path):
    pairs = {name: to_json(tiny_pair(name, tmp_path / name)[1].settings) for name in (family, other)}
    path = tmp_path / "processor.json"
    path.write_text(json.dumps({**pairs[family], "image": pairs[other]["image"]}))
    with pytest.raises(BundleError, match="image.kind|image in"):
        read_settings(path)


def test_json_with_two_readings_is_refused(tmp_path):
    _, ours = tiny_pair("llama", tmp_path)
    path = tmp_path / "bundle" / "processor.json"
    text = path.read_text()
    twice = text.replace("{", '{"family": "qwen2", ', 1)
    for wrong in (twice, text.replace('"format_version": 1', '"format_version": NaN')):
        assert wrong != text
        path.write_text(wrong)
        with pytest.raises(BundleError, match="processor.json"):
            read_settings(path)
