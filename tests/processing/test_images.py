from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.image_transforms import center_crop as hf_center_crop
from transformers.image_utils import load_image as hf_load_image

from linmu.errors import InputError
from linmu.processing.images import center_crop, load_image, normalize, pad_to_square, resize
from linmu.processing.settings import CropSettings
from tests.processing.support import picture


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "I;16", "CMYK"])
def test_files_of_every_mode(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        image = Image.fromarray((np.arange(12, dtype=np.uint16) * 21).reshape(3, 4))
    elif mode in ("P", "1"):
        image = picture(5, 7).convert(mode)
    else:
        image = picture(5, 7, mode=mode)
    image.save(path)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(hf_load_image(str(path))))


def test_exif_orientation(tmp_path):
    image, exif = picture(9, 5), Image.Exif()
    exif[0x0112] = 6  # turn right
    image.save(tmp_path / "a.png", exif=exif)
    turned = load_image(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_transparent_pixels_of_a_pillow_image_become_white():
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(load_image(image)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def damaged(tmp_path):
    good = tmp_path / "good.png"
    picture(40, 30).save(good)
    picture(40, 30).save(tmp_path / "good.jpg")
    data, jpeg = good.read_bytes(), (tmp_path / "good.jpg").read_bytes()
    flipped = bytearray(data)
    flipped[60] ^= 255
    bomb = data[:16] + (60_000).to_bytes(4, "big") * 2 + data[24:]
    return {
        "empty.png": b"", "half.png": data[: len(data) // 2], "half.jpg": jpeg[: len(jpeg) // 2], "text.png": b"hello",
        "head.png": data[:20], "flipped.png": bytes(flipped), "bomb.png": bomb,
    }  # fmt: skip


def test_damaged_files_are_named_in_one_line(tmp_path):
    for name, data in damaged(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    for other in (tmp_path / "missing.png", tmp_path, "http://example.org/a.png"):
        with pytest.raises(InputError, match="cannot find"):
            load_image(other)
    with pytest.raises(InputError, match="expected a file"):
        load_image(b"bytes")


@pytest.mark.parametrize("size", [(5, 8), (13, 8), (5, 20), (14, 21), (9, 11)])
def test_center_crop_pads_like_transformers(size):
    image = np.asarray(picture(11, 9))
    want = hf_center_crop(image.transpose(2, 0, 1), size, input_data_format="channels_first").transpose(1, 2, 0)
    np.testing.assert_array_equal(center_crop(image, size), want)


def test_pad_to_square_keeps_the_picture_in_the_middle():
    image = np.asarray(picture(3, 8))
    square = pad_to_square(image, (7, 8, 9))
    assert square.shape == (8, 8, 3)
    np.testing.assert_array_equal(square[:, 2:5], image)
    assert (square[:, :2] == (7, 8, 9)).all() and (square[:, 5:] == (7, 8, 9)).all()


def test_normalize_is_the_plain_formula():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    settings = CropSettings(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), resample=3)
    want = (images / 255 - settings.mean) / settings.std
    np.testing.assert_allclose(normalize(images, settings), want.transpose(0, 3, 1, 2), atol=1e-6)
    bare = CropSettings(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), resample=3, do_rescale=False, do_normalize=False)
    np.testing.assert_array_equal(normalize(images, bare), images.transpose(0, 3, 1, 2).astype(np.float32))


def test_absurd_sizes_are_refused():
    with pytest.raises(InputError, match="at most"):
        resize(np.zeros((1, 2, 3), np.uint8), (20_000, 20_000), 3)
