"""Debian's clip art with names out of its file names, as stamps: package openclipart-png.

A file is called after what it shows and who drew it ("bat_orlando_karam_.png", "crawfish2_bw_ganson.png"), so that a
name counts only where its first words are in `NAMES` or `TRANSLATED`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from debian_package import read_source
from stamps_source import Stamp, visible_part

from linmu.errors import InputError

INSTALLED = "usr/share/openclipart/png"
# What "What kind of thing is this?" is answered with; folders that are not here are not read.
FOLDERS: dict[str, str | None] = {
    "animals": "animal",
    "buildings": None,
    "computer/hardware": None,
    "containers": None,
    "education": None,
    "electronics": None,
    "food": "food",
    "geography/astronomy": None,
    "household": None,
    "office": None,
    "people/clothing": "clothing",
    "plants": "plant",
    "recreation/music": None,
    "recreation/sports": None,
    "recreation/toys": None,
    "tools": None,
    "transportation": None,
    "unsorted": None,
}
NAMES = frozenset(
    "accordion airplane anchor apple bacon bamboo banana baseball basketball bat battery beaver bee beer bicycle "
    "binoculars bird bison book boomerang bottle bowl box bread broom brush bucket burger burrito bus butterfly "
    "button cactus cake calculator camel camera candle car castle cat caterpillar cello chair cheese cheetah cherry "
    "chicken chipmunk church clarinet clock cloud compass computer corn crab crawfish croissant crow crown cup cymbal "
    "daffodil daisy dartboard deer desk dinosaur dog dolphin domino dove dragon drill drum duck eagle echidna egg "
    "elephant envelope eraser factory fawn feather fern fish flute football fork fox frog garlic giraffe glass goat "
    "gorilla grapes guitar hammer hamster harp hat helicopter helmet hen horn horse house igloo joystick "
    "kangaroo katana key keyboard knife ladybug lamp laptop lasagna leaf lemon lightbulb lighthouse lime lion lizard "
    "lock lollipop magnolia mailbox maracas melon mermaid microphone milk monitor monkey mosquito motorcycle "
    "mouse mug mushroom newspaper oboe octopus onion orange orca owl padlock palette palmtree pan pancakes parchment "
    "parrot peach pear pen pencil penguin phone piano pie pig pineapple pizza plane plum potato pretzel printer prune "
    "puffin pumpkin rabbit raccoon radio rhinoceros robot rocket rooster rose ruler sailboat salad sandwich satellite "
    "saturn saw saxophone scissors scorpion screwdriver seagull seahorse seal shark sheep shield ship shirt shoe "
    "shovel snail snake sock spider spoon squirrel steak stethoscope strawberry sun sunglasses surfboard swan "
    "sword tank teacup teapot telephone telescope television thermometer thumbtack tie tiger toothbrush tractor "
    "train tram tree trombone trowel truck trumpet tulips turkey turtle typewriter umbrella van violin wagon watch "
    "watermelon whale wheel wolf wrench xylophone zebra".split()
)
# The longest beginning of a file name counts: words of other languages, other words for the same, and compounds.
TRANSLATED = {
    "acquila": "eagle",
    "alarm clock": "alarm clock",
    "baby bottle": "baby bottle",
    "bass clef": "bass clef",
    "bowling ball": "bowling ball",
    "camera": "camera",
    "cammello": "camel",
    "canguro": "kangaroo",
    "cavalletta": "grasshopper",
    "cavallo": "horse",
    "christmas tree": "christmas tree",
    "cigno": "swan",
    "coccinella": "ladybug",
    "coffee cup": "cup",
    "cone": "ice cream",
    "coniglio": "rabbit",
    "contour bat": "bat",
    "damselfly": "dragonfly",
    "dino": "dinosaur",
    "dinosauro": "dinosaur",
    "elefante": "elephant",
    "farfalla": "butterfly",
    "flower": "flower",
    "flower pot": "flower pot",
    "gabbiano": "seagull",
    "gallo": "rooster",
    "gatto": "cat",
    "glace": "ice cream",
    "golf ball": "golf ball",
    "gufo": "owl",
    "hamburger": "burger",
    "hot dog": "hot dog",
    "hummer": "car",
    "ice cream": "ice cream",
    "ice cube": "ice cube",
    "leone": "lion",
    "libellula": "dragonfly",
    "lucertola": "lizard",
    "lumaca": "snail",
    "magnifying glass": "magnifying glass",
    "moon": "moon",
    "mucca": "cow",
    "muffin": "muffin",
    "orso": "bear",
    "pecora": "sheep",
    "pinguino": "penguin",
    "ragno": "spider",
    "rana": "frog",
    "red flower": "flower",
    "rubber duck": "rubber duck",
    "soccer ball": "soccer ball",
    "sun flower": "sunflower",
    "teddy bear": "teddy bear",
    "tennis racket": "tennis racket",
    "tigre": "tiger",
    "top hat": "hat",
    "treble clef": "treble clef",
    "zanzara": "mosquito",
}
# The first words would name another thing than the picture shows.
NOT = (
    "bird of",
    "bus lane",
    "bus symbol",
    "cat scrathing",
    "dog on leash",
    "dove",
    "red flower pot",
    "tree branches",
    "van gogh",
)
NOT_IN = ("transportation/roadsigns/", "transportation/aiga-symbols/")
MOST = 6  # pictures of one name: they are often variants of one drawing


def name_of(stem: str) -> str | None:
    """What a file's name says its picture shows, or None.

    "crawfish2_bw_ganson" is "crawfish", "contour_fox" is "fox", "gatto_architetto_01" is "cat".
    """
    words = re.sub(r"[^a-z]+", " ", stem.lower()).split()
    words = words[1:] if words[:1] == ["contour"] else words
    for count in (2, 1):
        beginning = " ".join(words[:count])
        if " ".join(words).startswith(NOT):
            return None
        if beginning in TRANSLATED or beginning in NAMES:
            return TRANSLATED.get(beginning, beginning)
    return None


def load_clipart(source: Path, longest: int = 2**20) -> list[Stamp]:
    """Clip art whose name is known, from a .deb file, an unpacked package or its folder; at most `MOST` of a name.

    longest: bytes of a file. Raises InputError when there is none.
    """
    found: list[Stamp] = []
    counts: dict[str, int] = {}
    pixels: set[bytes] = set()
    for path, content in sorted(read_source(Path(source), INSTALLED, lambda name: name.endswith(".png"))):
        folder = max((folder for folder in FOLDERS if path.startswith(f"{folder}/")), key=len, default=None)
        name = name_of(PurePosixPath(path).stem)
        if (
            folder is None
            or name is None
            or path.startswith(NOT_IN)
            or not 0 < len(content) <= longest
            or counts.get(name, 0) == MOST
        ):
            continue
        picture = visible_part(content)
        if isinstance(picture, str) or picture.tobytes() in pixels:
            continue
        pixels.add(picture.tobytes())
        counts[name] = counts.get(name, 0) + 1
        asked = None if name.endswith("s") else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        found.append(Stamp(f"clipart/{path.removesuffix('.png')}", name, asked, FOLDERS[folder], True, False, picture))
    if not found:
        raise InputError("no clip art found", got=source, expected="Debian's package openclipart-png")
    return found
