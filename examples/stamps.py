"""Real pictures as questions: Tux Paint's captioned stamps composed into scenes ("What is on the left?").

    python examples/stamps.py SOURCE OUT [--train 10000] [--test 1000] [--seed 0] [--sheet FILE.png]

SOURCE holds the stamps: about 785 pictures with captions, GPL-2, from Debian's package tuxpaint-stamps-default.

- on Debian or Ubuntu:  apt-get download tuxpaint-stamps-default   (161 MB; SOURCE is the .deb file)
- or, installed:        apt-get install tuxpaint-stamps-default    (SOURCE is /usr/share/tuxpaint/stamps)
- elsewhere:            the same .deb file from packages.debian.org; it is read directly, nothing is unpacked

OUT/train and OUT/test become data folders; OUT/stamps.json says which stamps were used and how they were named. The
pictures in them derive from GPL-2 material: keep them out of repositories under other licences.

Train and test share stamps, since a name can only be read by who has seen it, but no composition: the set of stamps
in a sample (with one stamp: its size, place and side) belongs to one side by its hash. Every tenth stamp is held out
and stands in the test questions that need no name, "count-new" and "kind-new", only. Both choices are made by
hashes, not by the seed: test folders of other seeds are new to a model trained with any seed. The same arguments
with the same versions of Python and Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from stamps_questions import Pool, ask, pools
from stamps_scenes import SIDE, composition, draw
from stamps_source import Stamp, load_stamps

from linmu.errors import CheckFailed, InputError, LinmuError
from linmu.files.atomic import atomic_file, write_bytes
from linmu.formats.data_folder import DataFolder, write_data_folder
from linmu.formats.picture_file import opened_picture

SHEET_COLUMNS, SHEET_ROWS = 6, 4
TEXT_HEIGHT = 48  # pixels under a picture of the sheet


def samples(
    both: tuple[Pool, Pool], split: str, count: int, seed: int, compositions: set[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Image.Image]]]:
    """Lines and pictures for `write_data_folder`, with a progress bar; adds every composition to `compositions`."""
    for index in track(range(count), description=split, console=Console(stderr=True)):
        question, rng = ask(both, split, seed, index)
        compositions.add(composition(question.scenes))
        names = [f"images/{index:06d}-{rank}.png" for rank in range(len(question.scenes))]
        line = {
            "id": f"stamps-{split}-{seed}-{index:06d}",
            "task": question.task,
            "images": names,
            "video": None,
            "prompt": question.prompt,
            "answer": question.answer,
        }
        yield line, dict(zip(names, (draw(scene, rng) for scene in question.scenes), strict=True))


def write(stamps: Sequence[Stamp], out: Path, counts: dict[str, int], seed: int) -> None:
    """Write the data folders of both splits; raises CheckFailed when they share a composition."""
    both = pools(stamps)
    found: dict[str, set[str]] = {split: set() for split in counts}
    for split, count in counts.items():
        if count:
            write_data_folder(out / split, samples(both, split, count, seed, found[split]))
    if shared := set.intersection(*found.values()):
        raise CheckFailed("train and test share a composition", got=sorted(shared)[0])


def describe(stamps: Sequence[Stamp], skipped: Counter[str], seed: int) -> bytes:
    """The JSON file that says what the stamps were taken for."""
    entries = [{"path": s.path, "name": s.name, "kind": s.kind, "held_out": s.held_out} for s in stamps]
    facts = {"seed": seed, "skipped": dict(sorted(skipped.items())), "stamps": entries}
    return (json.dumps(facts, indent=1) + "\n").encode()


def sheet(folder: Path) -> Image.Image:
    """The first samples of a data folder with their questions and answers, for a person to look at."""
    page = Image.new("RGB", (SHEET_COLUMNS * (SIDE + 8), SHEET_ROWS * (SIDE + TEXT_HEIGHT)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for place, sample in enumerate(DataFolder.open(folder).samples[: SHEET_COLUMNS * SHEET_ROWS]):
        left, top = place % SHEET_COLUMNS * (SIDE + 8) + 4, place // SHEET_COLUMNS * (SIDE + TEXT_HEIGHT)
        side = SIDE // len(sample.images)
        for rank, file in enumerate(sample.images):
            with opened_picture(file) as image:
                page.paste(image.resize((side, side)), (left + rank * side, top))
        text = "\n".join([*textwrap.wrap(sample.prompt, 27), sample.answer.upper()])
        pen.multiline_text((left, top + SIDE), text, fill="black", font=font, spacing=1)
    return page


def main() -> None:
    """Read the stamps, write the folders and say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the .deb file, the unpacked package or the stamps folder")
    parser.add_argument("out", type=Path, help="where the folders train and test are made")
    parser.add_argument("--train", type=int, default=10_000, help="samples")
    parser.add_argument("--test", type=int, default=1_000, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a PNG file of 24 samples with questions and answers")
    args = parser.parse_args()
    try:
        run(args.source, args.out, {"train": args.train, "test": args.test}, args.seed, args.sheet)
    except LinmuError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(source: Path, out: Path, counts: dict[str, int], seed: int, sheet_file: Path | None = None) -> None:
    """All of it; raises InputError when a count is negative, all are 0, or a folder exists already."""
    if min(counts.values()) < 0 or not any(counts.values()):
        raise InputError("number of samples", got=counts, expected="0 or more of each, not all 0")
    if existing := [str(out / split) for split in counts if (out / split).exists()]:
        raise InputError("the output exists already", got=", ".join(existing), fix="choose another name or remove it")
    stamps, skipped = load_stamps(source)
    print(f"{len(stamps)} stamps of {len({s.name for s in stamps})} names, {sum(s.held_out for s in stamps)} held out")
    print("skipped: " + ", ".join(f"{count} {why}" for why, count in skipped.most_common()))
    write(stamps, out, counts, seed)
    write_bytes(out / "stamps.json", describe(stamps, skipped, seed))
    if sheet_file is not None:
        with atomic_file(sheet_file) as temporary:
            sheet(out / next(split for split in ("test", "train") if counts[split])).save(temporary, format="PNG")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
