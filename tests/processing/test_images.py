from __future__ import annotations

import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw, ImageFont
from transformers.image_transforms import center_crop as hf_center_crop
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image as hf_load_image

from linmu.errors import InputError
from linmu.processing.images import center_crop, load_image, normalize, pad_to_square, resize
from linmu.processing.settings import CropSettings
from tests.processing.support import picture


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr"])
def test_opaque_files_are_what_transformers_reads(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    image = picture(5, 7).convert(mode) if mode in ("P", "1") else picture(5, 7, mode=mode)
    image.save(path)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(hf_load_image(str(path))))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_transparency_lies_on_white_as_in_transformers_image_processors(mode, tmp_path):
    image = picture(9, 7, mode="LA" if mode in ("LA", "La") else "RGBA")
    if mode == "PA":
        image = Image.merge("PA", (picture(9, 7).convert("P"), picture(9, 7, seed=1, mode="L")))
    wanted = convert_to_rgb(image, return_numpy=True)
    given = image if mode in ("RGBA", "LA", "PA") else image.convert(mode)
    tolerance = 0 if mode in ("RGBA", "LA", "PA") else 3 * 255  # premultiplying loses colours that nobody sees
    assert np.abs(np.asarray(load_image(given)).astype(int) - wanted).max() <= tolerance
    if mode in ("RGBA", "LA"):
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), wanted)


@pytest.mark.parametrize("name", ["one.png", "one.gif", "several.png", "grey.png", "colour.png"])
def test_colours_that_count_as_transparent(name, tmp_path):
    """One palette entry, several of them, one grey, one colour: white as in a browser and in transformers."""
    image = Image.new("P", (7, 5))
    image.putpalette([200, 10, 20, 30, 210, 40, 50, 60, 220] + [0] * 759)
    image.putdata([place % 3 for place in range(35)])
    several, colour = bytes([255, 0, 128]), (30, 210, 40)
    clear = {"one.png": 1, "one.gif": 1, "several.png": several, "grey.png": 137, "colour.png": colour}
    if name in ("grey.png", "colour.png"):
        image = image.convert("L" if name == "grey.png" else "RGB")
    image.save(tmp_path / name, transparency=clear[name])
    with Image.open(tmp_path / name) as opened:
        wanted = convert_to_rgb(opened.convert("RGBA"), return_numpy=True)
    found = np.asarray(load_image(tmp_path / name))
    np.testing.assert_array_equal(found, wanted)
    transparent = np.array([place % 3 == 1 for place in range(35)]).reshape(5, 7)
    assert (found[transparent] == 255).all() and not (found[~transparent] == 255).all(1).any()
    if name.startswith("one"):  # what its processors get of a file: load_image, then convert_to_rgb
        theirs = convert_to_rgb(hf_load_image(str(tmp_path / name)), return_numpy=True)
        np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("colour", ["black", "white", "red", "#ddd"])
def test_letters_on_nothing_stay_readable(colour, tmp_path):
    image = Image.new("RGBA", (150, 61), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((7, 9), "STOP 7", fill=colour, font=ImageFont.load_default(32))
    image.save(tmp_path / "a.png")
    drawn = np.asarray(load_image(tmp_path / "a.png")).astype(int)
    alpha = np.asarray(image)[..., 3]
    background = 0 if colour in ("white", "#ddd") else 255  # what would be seen of them on the other is next to nothing
    assert (drawn[alpha == 0] == background).all()
    ink = np.array(ImageColor.getrgb(colour))
    assert (drawn[alpha == 255] == ink).all() and np.abs(ink - background).max() > 128


def test_a_white_page_with_round_corners_stays_on_white():
    image = Image.new("RGBA", (120, 90), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, 119, 89), 12, fill="white")
    pen.text((20, 30), "invoice", fill="black", font=ImageFont.load_default(24))
    assert np.asarray(load_image(image))[0, 0].tolist() == [255, 255, 255]


DEEP = {
    "I;16 png": (np.arange(12, dtype=np.uint16) * 5957, np.round(np.arange(12) * 5957 / 257)),
    "I;16 tif": (np.arange(12, dtype=np.uint16) * 21, np.round(np.arange(12) * 21 / 257)),  # dark is dark
    "I;16B tif": (np.arange(12).astype(">u2") * 5957, np.round(np.arange(12) * 5957 / 257)),
    "I pgm": (np.arange(12, dtype=np.uint16) * 5957, np.round(np.arange(12) * 5957 / 257)),
    "I tif": (np.arange(12, dtype=np.int32) * 5950, np.round(np.arange(12) * 5950 / 257)),
    "I bytes tif": (np.arange(12, dtype=np.int32) * 21, np.arange(12) * 21),
    "I own tif": (np.arange(12, dtype=np.int32) * 10**6 - 77, np.round(np.arange(12) / 11 * 255)),
    "F tif": (np.arange(12, dtype=np.float32) / 11, np.round(np.arange(12) / 11 * 255)),
    "F bytes tif": (np.arange(12, dtype=np.float32) * 23, np.arange(12) * 23),
    "F own tif": (np.arange(12, dtype=np.float32) - 3, np.round(np.arange(12) / 11 * 255)),
    "F odd tif": (
        np.array([np.nan, -np.inf, np.inf] + [-1, 1] + [0] * 7, np.float32),
        np.array([0, 0, 255, 0, 255] + [127.5] * 7),
    ),
}


@pytest.mark.parametrize("name", list(DEEP))
def test_deep_greys_keep_their_steps(name, tmp_path):
    """Pillow's own conversion makes everything above 255 white, whatever the depth."""
    values, wanted = DEEP[name]
    path = tmp_path / f"a.{name.split()[-1]}"
    Image.fromarray(values.reshape(3, 4)).save(path)
    with Image.open(path) as opened:
        assert opened.mode.split(";")[0] == name[0]
    found = np.asarray(load_image(path))
    assert (found == found[..., :1]).all() and np.abs(found[..., 0].reshape(-1) - wanted).max() <= 0.5
    again = Image.fromarray(values.reshape(3, 4))
    if not name.startswith("I pgm"):
        np.testing.assert_array_equal(np.asarray(load_image(again)), found)


def test_a_deep_grey_that_counts_as_transparent(tmp_path):
    values = (np.arange(12, dtype=np.uint16) * 5957).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=5957 * 4)
    found = np.asarray(load_image(tmp_path / "a.png"))[..., 0]
    assert found[1, 0] == 255 and found[1, 1] == round(5957 * 5 / 257)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation(number, ending, tmp_path):
    image, exif = picture(24, 16).resize((48, 32)), Image.Exif()
    exif[0x0112] = number
    image.save(tmp_path / f"a.{ending}", exif=exif, **({"lossless": True} if ending == "webp" else {}))
    pixels = np.asarray(image)
    wanted = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }[number]
    found = np.asarray(load_image(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(found, np.asarray(hf_load_image(str(tmp_path / f"a.{ending}"))))
    assert found.shape == wanted.shape and np.abs(found.astype(int) - wanted).mean() < (30 if ending == "jpg" else 0.01)
    with Image.open(tmp_path / f"a.{ending}") as opened:  # the same file, opened by the caller
        seen = load_image(opened)
    for image in (seen, load_image(seen)):  # seen twice, it is not turned twice
        np.testing.assert_array_equal(np.asarray(image), found)


def test_broken_exif_does_not_hide_a_picture(tmp_path):
    picture(9, 5).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(tmp_path / "a.png").size == (9, 5)


def test_the_command_line_says_nothing_of_a_pictures_metadata(tmp_path):
    picture(9, 5).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    script = "import sys; from linmu.cli import main; from linmu.processing.images import load_image; "
    script += "main(['--version']); load_image(sys.argv[1])"
    command = [sys.executable, "-c", script, str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_the_first_frame_of_an_animation(ending, tmp_path):
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("#c81428", "#1ec828", "#3232c8")]
    lossless = {"lossless": True} if ending == "webp" else {}
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], **lossless)
    assert np.asarray(load_image(tmp_path / f"a.{ending}"))[3, 4].tolist() == [0xC8, 0x14, 0x28]


def test_formats_that_could_start_or_fetch_something_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **options: pytest.fail("a program was started"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    picture(9, 7).save(tmp_path / "icon.ico")
    picture(9, 7).save(tmp_path / "a.tga")
    for name in ("a.png", "icon.ico", "a.tga"):
        with pytest.raises(InputError, match=f"{name}; got .* expected a whole PNG"):
            load_image(tmp_path / name)


def bomb(side: int, colour: int = 0) -> bytes:
    """A PNG of side x side grey pixels, all the same."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"".join(packer.compress(b"\0" + bytes([colour]) * side) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8193, 11_000, 13_370])
def test_more_pixels_than_fit_are_refused_before_decoding(side, tmp_path, recwarn):
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"too large; got {side}x{side} pixels"):
            load_image(tmp_path / "bomb.png")
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()
    assert not recwarn.list


def test_a_large_photograph_is_decoded_smaller(tmp_path, recwarn):
    image = Image.linear_gradient("L").resize((12_000, 9_000))  # 108 megapixels
    image.save(tmp_path / "a.jpg", quality=60)
    image.save(tmp_path / "p.jpg", quality=60, progressive=True)
    found = load_image(tmp_path / "a.jpg")
    assert found.size == (6000, 4500) and not recwarn.list
    with pytest.raises(InputError, match="too large.*baseline JPEG"):
        load_image(tmp_path / "p.jpg")
    wanted = np.asarray(image.reduce(60)).astype(int)
    assert np.abs(np.asarray(found.reduce(30))[..., 0].astype(int) - wanted).max() <= 2


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "proc.png").symlink_to("/proc/self/status")  # says that it is empty
    names = ("pipe.png", "zero.png", "loop.png", "proc.png", "x" * 5000, "a\0b", "\udce4.png")
    for name in names:
        with pytest.raises(InputError) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def damaged(tmp_path):
    good = tmp_path / "good.png"
    picture(40, 30).save(good)
    picture(40, 30).save(tmp_path / "good.jpg")
    data, jpeg = good.read_bytes(), (tmp_path / "good.jpg").read_bytes()
    flipped = bytearray(data)
    flipped[60] ^= 255
    bomb = data[:16] + (60_000).to_bytes(4, "big") * 2 + data[24:]
    return {
        "empty.png": b"",
        "half.png": data[: len(data) // 2],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "text.png": b"hello",
        "head.png": data[:20],
        "flipped.png": bytes(flipped),
        "bomb.png": bomb,
    }


def test_damaged_files_are_named_in_one_line(tmp_path):
    for name, data in damaged(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name) as caught:
            load_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    for other in (tmp_path / "missing.png", tmp_path, "http://example.org/a.png"):
        with pytest.raises(InputError, match="cannot read the image .*; got (No such file|a folder)"):
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
