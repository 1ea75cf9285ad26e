"""Every way to give a picture gives the same pixels; settings of parts are followed or refused."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image as hf_load_image

from linmu.errors import InputError
from linmu.processing.images import load_image
from linmu.processing.sources import MediaSource, image_source, same_source
from tests.processing.support import hf_chat, picture, pixels_of, tiny_pair
from tests.tiny import tiny_video


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(9, 5), exif=exif)


class Own:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("family", ("qwen2_5_vl", "smolvlm"))
def test_every_kind_of_picture(family, tmp_path):
    theirs, ours = tiny_pair(family, tmp_path)
    image = picture(61, 44)
    data, array = encoded(image), np.asarray(image)
    (tmp_path / "a.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    text, ids, pixels = hf_chat(
        theirs, [{"role": "user", "content": [{"type": "image", "url": url}, {"type": "text", "text": "x"}]}]
    )
    kinds = [
        image,
        data,
        bytearray(data),
        memoryview(data),
        array,
        url,
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Own(tmp_path / "a.png"),
        encoded(image, "WEBP", lossless=True),
    ]
    for kind in kinds:
        for given in (kind, [kind]):
            inputs = ours.encode("x", given)
            np.testing.assert_array_equal(inputs.input_ids, ids)
            mine = pixels_of(inputs)
            np.testing.assert_allclose(mine, np.asarray(pixels).reshape(mine.shape), atol=1e-6)
    assert len(ours.encode("x", [image, data, array, url]).media) == 4


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "URL"}},
        {"type": "image_url", "image_url": "URL"},
        {"type": "image_url", "image_url": {"url": "URL", "detail": "auto"}},
        {"type": "image", "image": "URL"},
        {"type": "image", "url": "URL"},
        {"type": "image", "base64": "BASE64"},
    ],
)
def test_parts_of_messages(part, tmp_path):
    _, ours = tiny_pair("llava", tmp_path)
    data = base64.b64encode(encoded(picture(61, 44))).decode()
    url = f"data:image/png;base64,{data}"
    put = {"URL": url, "BASE64": data}

    def filled(value):
        return {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else put.get(value, value)

    inputs = ours.encode([{"role": "user", "content": [filled(part), {"type": "text", "text": "x"}]}])
    want = ours.encode("x", [picture(61, 44)])
    np.testing.assert_array_equal(inputs.input_ids, want.input_ids)
    np.testing.assert_array_equal(pixels_of(inputs), pixels_of(want))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pillow_images_and_bytes_stand_upright(orientation, tmp_path):
    data = turned(orientation)
    (tmp_path / "a.png").write_bytes(data)
    want = np.asarray(hf_load_image(str(tmp_path / "a.png")))
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(np.asarray(load_image(image_source(source))), want)


def test_greys_and_alpha_of_arrays():
    grey, rgba = np.asarray(picture(5, 7, mode="L")), np.asarray(picture(5, 7, mode="RGBA"))
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(np.asarray(image_source(array)), grey)
    assert image_source(rgba).mode == "RGBA" and image_source(rgba[:, ::-1]).size == (5, 7)


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        b"",
        b"no picture",
        turned(6)[:60],
        3,
        None,
        "https://example.org/a.png",
        "ftp://a/b",
        "data:image/png,abc",
        "data:text/plain;base64,aGk=",
        "data:image/png;base64,a",
        "data:image/png;base64,!!",
        "data:",
        "iVBORw0KGgo" * 900,
        "a\0b",
        {"url": "x"},
    ],
    ids=lambda value: repr(value)[:30].replace("\0", ""),
)
def test_what_is_no_picture_is_one_line(source, tmp_path):
    _, ours = tiny_pair("llava", tmp_path)
    with pytest.raises(InputError) as caught:
        ours.encode("x", [source])
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 and "BytesIO" not in message and "0x" not in message


def test_pixel_limits_of_a_part_are_followed(tmp_path):
    theirs, ours = tiny_pair("qwen2_5_vl", tmp_path)
    image = picture(140, 100)
    for limits in ({"max_pixels": 28 * 28 * 9}, {"min_pixels": 28 * 28 * 20, "max_pixels": 28 * 28 * 30}):
        part = {"type": "image", "image": image, **limits}
        inputs = ours.encode([{"role": "user", "content": [part, {"type": "text", "text": "x"}]}])
        processor = type(theirs.image_processor)(
            patch_size=14,
            size={"shortest_edge": limits.get("min_pixels", (4 * 14) ** 2), "longest_edge": limits["max_pixels"]},
        )
        want = processor(images=[image], return_tensors="np")
        assert inputs.media[0].tiles[0][1] * 2 == want["image_grid_thw"][0][1]
        np.testing.assert_allclose(pixels_of(inputs), want["pixel_values"], atol=1e-6)
    assert ours.encode("x", [image]).media != inputs.media


def test_fps_of_a_part_is_followed(tmp_path):
    _, ours = tiny_pair(
        "qwen3_vl",
        tmp_path,
        {
            "patch_size": 16,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "fps": 2.0,
            "size": {"shortest_edge": 4096, "longest_edge": 65536},
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    part = {"type": "video", "video": tiny_video(0, 6), "fps": 4}
    inputs = ours.encode([{"role": "user", "content": [part, {"type": "text", "text": "x"}]}])
    beside = ours.encode("x", video=tiny_video(0, 6), video_fps=4)
    np.testing.assert_array_equal(inputs.input_ids, beside.input_ids)
    assert inputs.input_ids.tolist() != ours.encode("x", video=tiny_video(0, 6), video_fps=1).input_ids.tolist()


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("llava", {"max_pixels": 900}),
        ("llava", {"url": "b.png"}),
        *(
            ("qwen2_5_vl", part)
            for part in (
                {"resized_height": 56},
                {"max_pixels": "big"},
                {"min_pixels": 10**6, "max_pixels": 900},
                {"fps": 2},
                {"max_pixels": -1},
            )
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_be_followed_are_refused(family, part, tmp_path):
    _, ours = tiny_pair(family, tmp_path)
    with pytest.raises(InputError, match=next(iter(part))):
        ours.encode([{"role": "user", "content": [{"type": "image", "image": picture(61, 44), **part}]}])
    for wrong in ({"type": "image_url"}, {"type": "image_url", "image_url": {"url": "a", "detail": "low"}}):
        with pytest.raises(InputError):
            ours.encode([{"role": "user", "content": [wrong]}])


def test_media_that_are_known_to_be_the_same():
    image, array = picture(5, 7), np.asarray(picture(5, 7))
    for one in (image, array, b"abc", "a.png"):
        assert same_source(MediaSource("image", one), MediaSource("image", one))
    assert same_source(MediaSource("image", array), MediaSource("image", array.copy()))
    assert not same_source(MediaSource("image", array), MediaSource("image", 255 - array))
    assert not same_source(MediaSource("image", "a.png"), MediaSource("image", "a.png", max_pixels=9))
    assert not same_source(MediaSource("image", image), MediaSource("image", array))
