"""One small file of every kind of picture and video, and files that only look like one: what fuzzing starts from."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.clips import cut, levels, write_clip

Mutation = Callable[[bytearray, random.Random], None]
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def write_pictures(folder: Path) -> None:
    """Every format and most modes."""
    image = Image.effect_mandelbrot((37, 29), (-2, -1, 1, 1), 30).convert("RGB")
    ImageDraw.Draw(image).ellipse((5, 5, 20, 20), fill=(200, 30, 60))
    clear = image.convert("RGBA")
    clear.putalpha(image.convert("L"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        (clear if "A" in mode else image).convert(mode).save(folder / f"{mode}.png")
    image.convert("P").save(folder / "clear.png", transparency=3)
    Image.fromarray((np.arange(37 * 29, dtype=np.uint16) * 61).reshape(29, 37)).save(folder / "deep.png")
    image.save(folder / "exif.png", exif=exif)
    image.save(folder / "a.jpg", exif=exif)
    image.save(folder / "progressive.jpg", progressive=True)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.save(folder / "two.mpo", save_all=True, append_images=[image.rotate(90)])
    for name, options in {
        "lossy.webp": {},
        "lossless.webp": {"lossless": True},
        "a.avif": {},
        "a.jp2": {},
        "a.bmp": {},
        "a.ppm": {},
        "a.tif": {},
        "lzw.tif": {"compression": "tiff_lzw"},
        "deflate.tif": {"compression": "tiff_adobe_deflate"},
        "jpeg.tif": {"compression": "jpeg"},
    }.items():
        image.save(folder / name, **options)
    clear.save(folder / "clear.webp")
    image.convert("F").save(folder / "float.tif")
    more = [image.rotate(angle) for angle in (40, 80)]
    for name in ("several.gif", "several.png", "several.webp", "several.tif"):
        image.save(folder / name, save_all=True, append_images=more)


def write_videos(folder: Path) -> None:
    """Every container, turned, cut, uneven and transparent clips among them."""
    frames = levels(7, (32, 48))
    for name in ("a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.ts"):
        write_clip(folder / name, frames)
    write_clip(folder / "a.flv", frames, codec="flv1")
    write_clip(folder / "a.mpg", frames, codec="mpeg2video", rate=25)
    write_clip(folder / "a.wmv", frames, codec="msmpeg4")
    write_clip(folder / "turned.mp4", frames, turn=(90, True, False))
    cut(write_clip(folder / "cut.mp4", frames), 2, 3)
    write_clip(folder / "uneven.mkv", frames, times=[0, 40, 90, 700, 2000, 2040, 9000])
    clear = np.concatenate([frames[3], frames[5][..., :1]], 2)
    write_clip(folder / "clear.mov", [clear] * 3, codec="png", pixels="rgba")
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(folder / "a.gif", save_all=True, append_images=images[1:], duration=100)


def write_strangers(folder: Path, inner: Path, port: int) -> None:
    """Files that would make FFmpeg or Pillow open `inner`, connect to `port` of this machine or start a program."""
    texts = {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner}\n#EXT-X-ENDLIST\n",
        "net.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {inner}\n",
        "session.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
        "a.eps.png": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "a.svg.png": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file://{inner}"/></svg>',
        "empty.mp4": "",
        "empty.png": "",
        "text.png": "hello " * 99,
    }
    for name, text in texts.items():
        (folder / name).write_text(text)


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _head(data: bytearray, chance: random.Random) -> None:
    """Bytes near the start, where sizes are."""
    for _ in range(chance.choice((1, 2, 4))):
        data[chance.randrange(min(len(data), 200))] = chance.randrange(256)


def _number(data: bytearray, chance: random.Random) -> None:
    """A number somewhere becomes an extreme one."""
    form = chance.choice((">I", "<I", ">H", "<H"))
    size, at = struct.calcsize(form), chance.randrange(len(data))
    data[at : at + size] = struct.pack(form, chance.choice(EXTREMES) & (256**size - 1))


def _cut_off(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _cut_out(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.randrange(1, 64)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.randrange(1, 400)] * chance.choice((1, 1, 50))


MUTATIONS: tuple[Mutation, ...] = (_flip, _head, _number, _number, _cut_off, _cut_out, _repeat)


def mutated(content: bytes, seed: int) -> bytes:
    """`content` damaged in one to three ways, the same ones for the same seed; seed 0 leaves it as it is."""
    data, chance = bytearray(content), random.Random(seed)
    for _ in range(chance.randint(1, 3) if seed else 0):
        if data:
            chance.choice(MUTATIONS)(data, chance)
    return bytes(data)
