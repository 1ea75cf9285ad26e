"""Reading Tux Paint's stamps: pictures, their names out of the captions, and what kind of thing they show.

How a caption becomes a name (its first line is English):

1. Quotes and apostrophes go; the name ends at a full stop, exclamation mark, bracket, dash, or one of `ENDS`.
2. A leading article goes ("A red apple." is "red apple"), then words that say nothing a picture of any size shows
   (`VAGUE`), then a group word ("a pair of pliers" is "pliers"). `ALIASES` joins a few names for the same thing.
3. One to three words of a to z are a name, unless one of them is in `NO_NAME`. Everything else is skipped.

Different stamps may share a name; they are one class. Stamps that no one could tell apart are in `LEFT_OUT`.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from debian_package import read_source
from PIL import Image

from linmu.errors import InputError

INSTALLED = "usr/share/tuxpaint/stamps"
LONGEST = 160  # pixels of a stamp's longer side once read
FAINT = 0.08  # mean opacity inside the bounding box
HELD_OUT_OF = 10  # one stamp in this many is kept for testing

ARTICLES = ("a", "an", "the", "our", "some", "two", "another")
VAGUE = {"very", "happy", "colorful", "small", "little", "large", "huge", "old", "modern", "lit", "ripe", "poisonous"}
GROUP = re.compile(r"^(?:pair|bunch|cluster|head|string|couple|quarter) of (.+)$")
SENTENCE = re.compile(r"[.!?;:(–—]|\s-\s")
_ENDS = "is at in inside from with also as used covered carries resembles lets means ahead hatched playing dancing"
ENDS = set(_ENDS.split()) | {"making"}
NO_NAME = set("a the and or to its this we your are down boom".split())
# "an" by sound, not by letter
LIKE_A_CONSONANT = ("uni", "uk ", "us ", "eu", "one")

ALIASES = {
    "avocado fruit": "avocado",
    "cemetery marker": "gravestone",
    "cherimoya fruit": "cherimoya",
    "grave marker": "gravestone",
    "headstone": "gravestone",
    "hibiscus flower": "hibiscus",
    "monument stone": "gravestone",
    "tombstone": "gravestone",
}

LEFT_OUT = {
    "symbols/alphabets/english/filled/lowercase/l_filled": "a bar",
    "symbols/alphabets/english/filled/uppercase/I_filled": "a bar",
    "symbols/alphabets/english/outlined/lowercase/l_outline": "a bar",
    "symbols/alphabets/english/outlined/uppercase/I_outline": "a bar",
    "symbols/alphabets/german/": "letters with marks",
    "symbols/alphabets/spanish/": "letters with marks",
    "symbols/math/operators/op2_multiply": "drawn as the letter x",
    "symbols/money/00_symbols/euro_2_cent": "drawn as the letter c",
    "symbols/money/00_symbols/gbp_2_penny": "drawn as the letter p",
    "seasonal/newyears/confetti": "many pieces",
    "vehicles/flight/planes/cartoon/plane": "named after what is not in the picture",
}

# What "What kind of thing is this?" is answered with: the longest matching beginning of a path counts, None: not asked.
KINDS: dict[str, str | None] = {
    "animals/": "animal",
    "animals/insects/cartoon/wings": None,
    "clothes/": "clothing",
    "food/": "food",
    "hobbies/music/": "musical instrument",
    "household/": "household item",
    "household/arttools/": None,
    "household/tools/": "tool",
    "military/vehicles/": "vehicle",
    "people/": "person",
    "people/body_parts/": "body part",
    "people/cartoon/": None,
    "plants/": "plant",
    "plants/mushrooms/": None,
    "space/moon/": "space object",
    "space/planets/": "space object",
    "sports/": "sports equipment",
    "symbols/alphabets/": "letter",
    "symbols/chess/": "chess piece",
    "symbols/faces/": "face",
    "symbols/math/": "number",
    "symbols/math/operators/": "math sign",
    "symbols/money/": "coin",
    "symbols/money/00_symbols/": "money sign",
    "symbols/music/": "music sign",
    "town/flags/": "flag",
    "town/houses/": "building",
    "town/monuments/": "monument",
    "town/roadsigns/": "road sign",
    "town/roadsigns/traffic_cone": None,
    "vehicles/": "vehicle",
    "vehicles/7spoke256": None,
    "vehicles/wheel_tractor": None,
    "vehicles/locomotive/cartoon/trainSign": None,
}

# Text and signs that mean something else in a mirror, whatever their settings say.
NEVER_MIRRORED = ("symbols/", "town/roadsigns/")


@dataclass(frozen=True)
class Stamp:
    """One picture that has a name.

    path: inside the stamps folder, without ending; name: one to three lower-case words; asked: the name with "a" or
    "an", None where the caption has neither; kind: what kind of thing it is, or None; mirror: whether it may be
    mirrored; held_out: kept for testing; picture: RGBA, cut to what is visible, at most 160 pixels a side.
    """

    path: str
    name: str
    asked: str | None
    kind: str | None
    mirror: bool
    held_out: bool
    picture: Image.Image = field(compare=False, repr=False)

    @property
    def category(self) -> str:
        """The folder on top: animals, food, ..."""
        return self.path.split("/")[0]

    @property
    def group(self) -> str:
        """The two folders on top, all buildings of a town in one."""
        group = "/".join(self.path.split("/")[:-1][:2])
        return "town/houses" if group in ("town/cartoon", "town/monuments") else group


def name_of(caption: str) -> tuple[str, str | None] | None:
    """The name in a caption and the name with "a" or "an" where the caption has it; None where there is no name."""
    text = re.sub("[\"'“”‘’]", "", unicodedata.normalize("NFKC", caption)).strip().lower()
    words = SENTENCE.split(text, maxsplit=1)[0].replace(",", " ").split()
    article = words.pop(0) if words and words[0] in ARTICLES else None
    while words and words[0] in VAGUE:
        words.pop(0)
    end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
    name = " ".join(words[:end])
    if group := GROUP.match(name):
        name, article = group[1], None
    name = " ".join(name.replace("-", " ").split())
    name = ALIASES.get(name, name)
    parts = name.split()
    if not 1 <= len(parts) <= 3 or not re.fullmatch("[a-z ]+", name) or NO_NAME & set(_before_letter(parts)):
        return None
    if article not in ("a", "an"):
        return name, None
    vowel = name[0] in "aeiou" and not name.startswith(LIKE_A_CONSONANT)
    return name, f"{'an' if vowel else 'a'} {name}"


def _before_letter(parts: list[str]) -> list[str]:
    """The words that `NO_NAME` is about: "letter a" ends in a letter, not in an article."""
    return parts[:-1] if len(parts) == 2 and parts[0] == "letter" else parts


def is_one_in(text: str, count: int) -> bool:
    """Whether a text is among the one in `count` that its hash picks: the same everywhere and for every seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % count == 0


def load_stamps(source: Path) -> tuple[list[Stamp], Counter[str]]:
    """The usable stamps of a .deb file, an unpacked package or a stamps folder, and how many were skipped why.

    Raises InputError when there is no stamp in `source`.
    """
    files = dict(sorted(read_source(Path(source), INSTALLED, _wanted)))
    skipped: Counter[str] = Counter()
    stamps: list[Stamp] = []
    seen: set[bytes] = set()
    for path in sorted({name.rsplit(".", 1)[0] for name in files}):
        found = _stamp(path, files)
        if isinstance(found, Stamp) and (pixels := found.picture.tobytes()) in seen:
            found = "the same picture again"
        elif isinstance(found, Stamp):
            seen.add(pixels)
            stamps.append(found)
        if isinstance(found, str):
            skipped[found] += 1
    if not stamps:
        fix = "see the top of examples/stamps.py for where to get the stamps"
        raise InputError("no stamps found", got=source, expected="pictures (.png) with captions (.txt)", fix=fix)
    return stamps, skipped


def _stamp(path: str, files: Mapping[str, bytes]) -> Stamp | str | None:
    """One stamp, or why it is skipped; None for what is no stamp (settings without picture and caption)."""
    caption, png = files.get(f"{path}.txt"), files.get(f"{path}.png")
    if caption is None:
        return "no caption" if png is not None else None
    if png is None:
        return "no PNG (Pillow reads no SVG)" if f"{path}.svg" in files else "no picture"
    if any(path.startswith(beginning) for beginning in LEFT_OUT):
        return "left out by hand"
    named = name_of(caption.decode("utf-8", "replace").split("\n", 1)[0])
    if named is None:
        return "no short name"
    picture = visible_part(png)
    if isinstance(picture, str):
        return picture
    settings = files.get(f"{path}.dat", b"").decode("utf-8", "replace").split()
    # A stamp that brings its own mirrored picture may not be mirrored by arithmetic.
    mirror = "nomirror" not in settings and f"{path}_mirror.png" not in files and not path.startswith(NEVER_MIRRORED)
    kinds = [beginning for beginning in KINDS if path.startswith(beginning)]
    kind = KINDS[max(kinds, key=len)] if kinds else None
    return Stamp(path, *named, kind, mirror, is_one_in(f"held out {path}", HELD_OUT_OF), picture)


def visible_part(png: bytes) -> Image.Image | str:
    """The visible part of a picture as RGBA, or what is wrong with it."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            whole = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "unreadable"
    box = whole.getchannel("A").point(lambda opacity: 255 * (opacity > 16)).getbbox()
    if box is None:
        return "faint"
    picture = whole.crop(box)
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    opacity = picture.getchannel("A").histogram()
    mean = sum(value * count for value, count in enumerate(opacity)) / (255 * sum(opacity))
    return picture if mean >= FAINT else "faint"


def _wanted(name: str) -> bool:
    return name.endswith((".png", ".txt", ".dat", ".svg"))
