from __future__ import annotations

import numpy as np
import pytest

from linmu.errors import InputError
from tests.processing.support import hf_chat, make_bundle, picture, pixels_of, real_processor, tiny_pair, user
from tests.tiny import VISION_NAMES

UNICODE = "héllo 世界 🙂 \u202eabc\n\ttabs  é"


def compare(theirs, ours, messages, images, prompt=None):
    """Chat text and ids equal, pixels equal to float rounding; every vision token in a grid."""
    text, ids, pixels = hf_chat(theirs, messages)
    inputs = ours.encode(messages if prompt is None else prompt, images)
    assert inputs.text == text
    np.testing.assert_array_equal(inputs.input_ids, ids)
    if pixels is None:
        assert not inputs.vision_calls and not inputs.media
        return inputs
    mine = pixels_of(inputs)
    pixels = np.asarray(pixels)
    assert mine.dtype == np.float32 and mine.size == pixels.size
    np.testing.assert_allclose(mine, pixels.reshape(mine.shape), atol=1e-6)
    tokens = sum(t * h * w for grid in inputs.media for t, h, w in grid.tiles)
    assert tokens == np.isin(ids, ours.media_token_ids).sum()
    return inputs


@pytest.mark.parametrize("family", VISION_NAMES)
def test_tiny_processors(family, tmp_path):
    theirs, ours = tiny_pair(family, tmp_path)
    for images in ([], [picture(140, 100)], [picture(333, 37), picture(37, 211, 1), picture(42, 42, 2)]):
        compare(theirs, ours, [user(images, UNICODE)], images, UNICODE)
    first, second = picture(90, 61), picture(13, 57)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user([first], "What?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        user([second], UNICODE),
    ]
    inputs = compare(theirs, ours, turns, [])
    assert len(inputs.media) == 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_text_only(family, tmp_path):
    theirs, ours = tiny_pair(family, tmp_path)
    messages = [
        {"role": "user", "content": UNICODE},
        {"role": "assistant", "content": "yes", "reasoning": "because"},
        {"role": "user", "content": "why?"},
    ]
    compare(theirs, ours, messages, [])
    compare(theirs, ours, [{"role": "user", "content": UNICODE}], [], UNICODE)
    np.testing.assert_array_equal(ours.encode(UNICODE, raw=True).input_ids, theirs(UNICODE)["input_ids"])
    with pytest.raises(InputError, match="takes no image"):
        ours.encode("x", [picture(3, 4)])


SHAPES = [(640, 480), (333, 37), (48, 500), (7, 5), (1, 1), (450, 447)]


@pytest.mark.parametrize("family", VISION_NAMES)
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_published_settings(family, size, tmp_path):
    theirs = real_processor(family)
    ours = make_bundle(theirs, family, tmp_path)
    images = [picture(*size)]
    compare(theirs, ours, [user(images, "What?")], images, "What?")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm", "llava"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "CMYK"])
def test_pillow_modes(family, mode, tmp_path):
    theirs, ours = tiny_pair(family, tmp_path)
    images = [picture(61, 44, mode=mode)]
    compare(theirs, ours, [user(images, "x")], images, "x")


def test_files_are_read_like_transformers_reads_them(tmp_path):
    theirs, ours = tiny_pair("internvl", tmp_path)
    path = tmp_path / "a.png"
    picture(61, 44).save(path)
    messages = [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": "x"}]}]
    compare(theirs, ours, messages, [])


def test_transparent_files_are_what_transformers_makes_of_opened_ones(tmp_path):
    """Its chat templates drop the alpha of files, letters and all; its image processors lay pictures on white."""
    theirs, ours = tiny_pair("internvl", tmp_path)
    path = tmp_path / "a.png"
    image = picture(61, 44, mode="RGBA")
    image.save(path)
    inputs = ours.encode("x", [path])
    want = theirs(images=[image], text=[inputs.text], return_tensors="np")
    np.testing.assert_array_equal(inputs.input_ids, want["input_ids"][0])
    np.testing.assert_allclose(pixels_of(inputs), want["pixel_values"], atol=1e-6)


def test_raw_prompt(tmp_path):
    theirs, ours = tiny_pair("llava", tmp_path)
    images = [picture(61, 44), picture(20, 30)]
    text = "a <image> b <image>c"
    inputs = ours.encode(text, images, raw=True)
    want = theirs(images=images, text=[text], return_tensors="np")
    assert inputs.text == text
    np.testing.assert_array_equal(inputs.input_ids, want["input_ids"][0])
    np.testing.assert_allclose(pixels_of(inputs), want["pixel_values"], atol=1e-6)


def test_qwen_calls_one_per_image_with_its_grid(tmp_path):
    _, ours = tiny_pair("qwen2_5_vl", tmp_path)
    inputs = ours.encode("x", [picture(140, 100), picture(37, 211)])
    for call, grid in zip(inputs.vision_calls, inputs.media, strict=True):
        t, h, w = grid.tiles[0]
        assert call["grid"].tolist() == [1, 2 * h, 2 * w] and t == 1
        assert call["pixel_values"].shape == (4 * h * w, 3 * 2 * 14 * 14)
    assert inputs.media[0].tiles != inputs.media[1].tiles


def test_without_a_chat_template(tmp_path):
    theirs, ours = tiny_pair("qwen2_5_vl", tmp_path)
    (tmp_path / "bundle" / "chat_template.jinja").unlink()
    ours = type(ours).from_folder(tmp_path / "bundle")
    images = [picture(140, 100)]
    text = "<|vision_start|><|image_pad|><|vision_end|>what?"
    inputs = ours.encode("what?", images)
    assert inputs.text == text
    want = theirs(images=images, text=[text], return_tensors="np")
    np.testing.assert_array_equal(inputs.input_ids, want["input_ids"][0])
    with pytest.raises(InputError, match="no chat template"):
        ours.encode([user(images, "x")])


def test_refusals(tmp_path):
    _, ours = tiny_pair("qwen2_5_vl", tmp_path)
    image = picture(30, 40)
    for prompt in ("", "  \n", [], [{"role": "user", "content": ""}], [{"role": "user", "content": []}]):
        with pytest.raises(InputError, match="prompt"):
            ours.encode(prompt)
    assert len(ours.encode("", [image]).media) == 1
    with pytest.raises(InputError, match="200"):
        ours.encode("x", [picture(201, 1)])
    with pytest.raises(InputError, match="placeholders"):
        ours.encode("x", [image], raw=True)
    with pytest.raises(InputError, match="placeholders"):
        ours.encode("<|image_pad|>", [image], parse_special=True)
    with pytest.raises(InputError, match="parts"):
        ours.encode([user([image], "x")], [image])
    with pytest.raises(InputError, match="expected"):
        ours.encode([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(InputError, match="raw"):
        ours.encode([user([image], "x")], raw=True)


def test_shapes_that_would_exhaust_memory_are_refused(tmp_path):
    _, ours = tiny_pair("llava", tmp_path)
    with pytest.raises(InputError, match="crop it"):
        ours.encode("x", [picture(1, 200_000)])


def test_decode_and_end_tokens(tmp_path):
    theirs, ours = tiny_pair("llama", tmp_path)
    ids = theirs(f"<bos>{UNICODE}<eos>")["input_ids"]
    assert ours.decode(np.asarray(ids)) == theirs.decode(ids, skip_special_tokens=True) == UNICODE
    assert ours.eos_token_ids == (2,)
