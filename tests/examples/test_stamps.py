"""Scenes of stamps: names from captions, sources, what pixels show against what is answered, and what stays apart."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from linmu.errors import InputError
from linmu.formats.data_folder import DataFolder
from tests.examples.stamp_files import EACH, FOLDERS, png, stamp_files, write_files, write_package
from tests.paths import ROOT

EXAMPLES = ROOT / "examples"
INSTALLED = Path("/usr/share/tuxpaint/stamps")
WHITE = (255, 255, 255)


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The example modules, importable as when they are run as scripts."""
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("stamps"), stamp_files())


@pytest.fixture(scope="module")
def stamps(source):
    from stamps_source import load_stamps

    return load_stamps(source)[0]


@pytest.mark.parametrize(
    ("caption", "name", "asked"),
    [
        ("A red apple.", "red apple", "a red apple"),
        ("An hippopotamus.", "hippopotamus", "a hippopotamus"),
        ("A European bear.", "european bear", "a european bear"),
        ("An old Iguana!", "iguana", "an iguana"),
        ("A ripe, red tomato!", "red tomato", "a red tomato"),
        ("A very small pumpkin.", "pumpkin", "a pumpkin"),
        ("A pair of pliers.", "pliers", None),
        ("Some blueberries.", "blueberries", None),
        ("The Sun.", "sun", None),
        ("The letter A.", "letter a", None),
        ("Mercury—the planet closest to the Sun.", "mercury", None),
        ("A candy cane is a traditional Christmas treat.", "candy cane", "a candy cane"),
        ("A “Granny Smith” apple.", "granny smith apple", "a granny smith apple"),
        ("A Jack-o’-lantern.", "jack o lantern", "a jack o lantern"),
        ("A grave marker.", "gravestone", "a gravestone"),
        ("A calculator.  6x7=42", "calculator", "a calculator"),
    ],
)
def test_a_caption_becomes_a_name(caption, name, asked):
    from stamps_source import name_of

    assert name_of(caption) == (name, asked)


@pytest.mark.parametrize(
    "caption",
    ["", "...", "A", "Eat your broccoli!", "An F-22 Raptor.", "A blue and yellow flag.", "This is it.", "Ein Bär."],
)
def test_a_caption_without_a_short_name_gives_none(caption):
    from stamps_source import name_of

    assert name_of(caption) is None


def test_every_source_gives_the_same_stamps(source, stamps, tmp_path):
    from stamps_source import load_stamps

    files = stamp_files()
    unpacked = write_files(tmp_path / "unpacked" / "usr" / "share" / "tuxpaint" / "stamps", files)
    package = write_package(tmp_path / "stamps.deb", files)
    assert len(stamps) == len(FOLDERS) * EACH
    for place in (unpacked, tmp_path / "unpacked", package):
        again, skipped = load_stamps(place)
        assert again == stamps and not skipped
        assert [s.picture.tobytes() for s in again] == [s.picture.tobytes() for s in stamps]


def test_what_is_skipped_is_counted_and_pictures_are_cut(tmp_path):
    from stamps_source import load_stamps

    wide = io.BytesIO()
    Image.new("RGBA", (640, 100), (1, 2, 3, 255)).save(wide, "PNG")
    files = {
        "food/a.txt": b"A cake.",
        "food/a.png": png((200, 0, 0), (31, 17), around=5),
        "food/again.txt": b"A bun.",
        "food/again.png": png((200, 0, 0), (31, 17), around=2),
        "food/wide.txt": b"A bread.",
        "food/wide.png": wide.getvalue(),
        "food/wide.dat": b"noflip nomirror",
        "food/drawn.txt": b"A pie.",
        "food/drawn.svg": b"<svg/>",
        "food/sound.txt": b"A gift.",
        "food/left_mirror.png": png((0, 9, 0)),
        "food/left.txt": b"A left.",
        "food/left.png": png((0, 8, 0)),
        "food/bad.txt": b"A jam.",
        "food/bad.png": b"\x89PNG\r\n\x1a\nno",
        "food/none.txt": b"A nut.",
        "food/none.png": _invisible(),
        "food/long.txt": b"We eat this every day.",
        "food/long.png": png((7, 0, 7)),
        "symbols/math/operators/op2_multiply.txt": b"Times.",
        "symbols/math/operators/op2_multiply.png": png((5, 5, 5)),
        "symbols/math/1.txt": b"One.",
        "symbols/math/1.png": png((6, 5, 5)),
    }
    stamps, skipped = load_stamps(write_files(tmp_path / "s", files))
    found = {stamp.name: stamp for stamp in stamps}
    assert sorted(found) == ["bread", "cake", "left", "one"]
    assert found["cake"].picture.size == (31, 17) and found["bread"].picture.size == (160, 25)
    assert {name: stamp.mirror for name, stamp in found.items()} == {
        "bread": False,
        "cake": True,
        "left": False,
        "one": False,
    }
    assert (found["cake"].kind, found["one"].kind, found["one"].category) == ("food", "number", "symbols")
    assert skipped == Counter(
        {
            "no PNG (Pillow reads no SVG)": 1,
            "no picture": 1,
            "no caption": 1,
            "no short name": 1,
            "faint": 1,
            "left out by hand": 1,
            "the same picture again": 1,
            "unreadable": 1,
        }
    )


def _invisible() -> bytes:
    out = io.BytesIO()
    Image.new("RGBA", (8, 8), (90, 90, 90, 9)).save(out, "PNG")
    return out.getvalue()


def boxes_in(image: Image.Image, stamps) -> dict[str, tuple[float, float]]:
    """Names of the one-coloured stamps in a picture on white and the centre of each, found by colour alone."""
    name_of = {stamp.picture.getpixel((5, 5))[:3]: stamp.name for stamp in stamps}
    pixels = np.asarray(image)
    found = {}
    for colour in {colour for _, colour in image.getcolors(16)} - {WHITE}:
        ys, xs = np.nonzero((pixels == colour).all(axis=-1))
        assert len(xs) == (np.ptp(xs) + 1) * (np.ptp(ys) + 1), "partly covered, or two stamps of one name"
        found[name_of[colour]] = (float(xs.mean()), float(ys.mean()))
    return found


def expected_answer(prompt: str, task: str, shown: list[dict[str, tuple[float, float]]], kinds: dict[str, str]) -> str:
    """What a person would answer who sees where each name stands."""
    one = shown[0]
    if prompt.startswith("How many"):
        return ("one", "two", "three", "four")[len(one) - 1]
    if asked := re.fullmatch(r"Is there an? (\w+)\?", prompt):
        return "yes" if asked[1] in one else "no"
    if asked := re.fullmatch(r"What is in the (\w+) image\?", prompt):
        (name,) = shown[("first", "second", "third").index(asked[1])]
        return name
    if "corner" in task:
        wanted = ("top" in prompt, "left" in prompt)
        (name,) = [name for name, (x, y) in one.items() if (y < 80, x < 80) == wanted]
    else:
        axis = 0 if "left" in prompt or "right" in prompt else 1
        ranked = sorted(one, key=lambda name: one[name][axis])
        assert len(ranked) == (1 if prompt.endswith("this?") else 2)
        name = ranked[0] if prompt.endswith(("left?", "top?")) else ranked[-1]
    return kinds[name] if "kind" in prompt else name


def test_answers_say_what_the_pixels_show(stamps, monkeypatch):
    import stamps_questions
    import stamps_scenes

    monkeypatch.setattr(stamps_scenes, "background", lambda rng: Image.new("RGB", (160, 160), WHITE))
    monkeypatch.setattr(stamps_scenes, "JITTER", 0)
    kind_of_folder = dict(zip(FOLDERS, ("animal", "food", "vehicle", "tool", "clothing", "flag"), strict=True))
    kinds = {stamp.name: kind_of_folder[stamp.path.rsplit("/", 1)[0]] for stamp in stamps}
    both = stamps_questions.pools(stamps)
    answers: dict[str, Counter[str]] = {}
    for split, count in (("train", 100), ("test", 192)):
        for index in range(count):
            question, rng = stamps_questions.ask(both, split, 3, index)
            shown = [boxes_in(stamps_scenes.draw(scene, rng), stamps) for scene in question.scenes]
            assert [set(names) for names in shown] == [{s.name for s in scene.stamps} for scene in question.scenes]
            assert question.answer == expected_answer(question.prompt, question.task, shown, kinds), question.prompt
            answers.setdefault(question.task.split("/")[1], Counter())[question.answer] += 1
    assert answers["presence"]["yes"] == answers["presence"]["no"] > 0
    assert set(answers["count"]) == {"one", "two", "three", "four"}
    assert {"name", "left-right", "top-bottom", "corner", "kind", "image", "kind-new", "count-new"} < set(answers)


def test_a_no_is_never_about_something_related(stamps):
    from stamps_questions import RELATED, Stamp, ask, pools, related

    both = pools(stamps)
    for index in range(0, 400):
        question, _ = ask(both, "train", 1, index)
        if question.answer == "no":
            folder = next(s.group for s in stamps if f" {s.name}?" in question.prompt)
            assert folder not in {stamp.group for stamp in question.scenes[0].stamps}

    def named(path, name):
        return Stamp(path, name, None, None, False, False, Image.new("RGBA", (1, 1)))

    assert RELATED["bunny"] == "rabbit"
    assert related(named("seasonal/easter/x", "bunny"), named("animals/mammals/y", "little rabbit"))
    assert related(named("food/fruit/x", "red apple"), named("town/flags/y", "red flag"))
    assert related(named("town/houses/x", "inn"), named("town/cartoon/y", "ruins"))
    assert not related(named("town/houses/x", "inn"), named("town/flags/y", "banner"))


def test_train_and_test_share_no_composition_and_held_out_stamps_stay_out(stamps):
    from stamps_questions import ask, pools

    both = pools(stamps)
    held_out = {stamp.path for stamp in stamps if stamp.held_out}
    assert 0 < len(held_out) < len(stamps) / 4
    sets: dict[str, set] = {}
    for split, seed in (("train", 0), ("test", 0), ("test", 1)):
        for index in range(600):
            question, _ = ask(both, split, seed, index)
            paths = frozenset(stamp.path for scene in question.scenes for stamp in scene.stamps)
            assert bool(paths & held_out) == question.task.split("/")[1].endswith("-new")
            assert not (question.task.split("/")[1].endswith("-new") and not paths <= held_out)
            if len(paths) > 1:
                sets.setdefault(split, set()).add(paths)
            else:
                scene = question.scenes[0]
                sets.setdefault(split, set()).add((paths, scene.detail))
                assert scene.detail
    assert len(sets["train"]) > 400 and len(sets["test"]) > 700
    assert not sets["train"] & sets["test"]


def test_stamps_keep_apart_inside_the_picture(stamps):
    from stamps_scenes import SIDE, overlap, place_anywhere

    free = 0
    for seed in range(300):
        rng = Random(seed)
        scene = place_anywhere(rng, rng.sample(stamps, 1 + seed % 4))
        boxes = [item.box for item in scene.placed]
        for left, top, width, height in boxes:
            assert 0 <= left <= left + width <= SIDE and 0 <= top <= top + height <= SIDE and min(width, height) > 5
        for one, two in itertools.combinations(boxes, 2):
            apart = any(one[a] + one[a + 2] <= two[a] or two[a] + two[a + 2] <= one[a] for a in (0, 1))
            assert apart and not overlap(one, two)
        free += any(left < 80 < left + width for left, _, width, _ in boxes)
    assert free > 60  # not all of them in corners


def test_a_background_that_hides_a_stamp_is_not_taken(stamps, monkeypatch):
    import stamps_scenes

    stamp = stamps[40]
    colours = iter([stamp.picture.getpixel((5, 5))[:3]] * 3 + [(250, 240, 250)] + [(1, 2, 3)] * 100)
    monkeypatch.setattr(stamps_scenes, "background", lambda rng: Image.new("RGB", (160, 160), next(colours)))
    scene = stamps_scenes.place_in_cells(Random(1), [stamp], stamps_scenes.ROW[:1])
    assert stamps_scenes.draw(scene, Random(1)).getpixel((159, 80)) == (250, 240, 250)


def run_script(source: Path, out: Path, *options: str) -> None:
    import stamps as script

    before = sys.argv
    sys.argv = ["stamps.py", str(source), str(out), *options]
    try:
        script.main()
    finally:
        sys.argv = before


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_script_writes_data_folders_with_the_same_bytes_each_time(source, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    run_script(source, tmp_path / "a", "--train", "23", "--test", "26", "--seed", "4", "--sheet", str(sheet))
    printed = capsys.readouterr().out
    assert f"{len(FOLDERS) * EACH} stamps of {len(FOLDERS) * EACH} names" in printed
    run_script(source, tmp_path / "b", "--train", "20", "--test", "26", "--seed", "4")
    run_script(source, tmp_path / "c", "--train", "0", "--test", "26", "--seed", "5")
    a, b, c = (content(tmp_path / name) for name in "abc")
    for name in b:
        # the first twenty questions do not depend on how many follow
        assert a[name].startswith(b[name]), name
    assert not (tmp_path / "c" / "train").exists()
    assert c["test/images/000003-0.png"] != a["test/images/000003-0.png"]
    folder = DataFolder.open(tmp_path / "a" / "test")
    assert len(folder) == 26 and folder.samples[2].id == "stamps-test-4-000002"
    for sample in folder.samples:
        assert re.fullmatch(r"stamps/[a-z-]+/[a-z]+", sample.task) and re.fullmatch("[a-z ]+", sample.answer)
        assert all(Image.open(file).size == (160, 160) and Image.open(file).mode == "RGB" for file in sample.images)
    facts = json.loads(a["stamps.json"])
    assert facts["seed"] == 4 and {"path", "name", "kind", "held_out"} == set(facts["stamps"][0])
    assert Image.open(sheet).size == (6 * 168, 4 * 208)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--train", "-1"], "number of samples"), (["--train", "0", "--test", "0"], "number of samples")],
)
def test_wrong_numbers_are_refused(source, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stopped:
        run_script(source, tmp_path / "out", *options)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sources_without_stamps_and_existing_outputs_are_refused(source, tmp_path, capsys):
    from stamps_source import load_stamps

    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.deb").write_bytes(b"no package")
    broken = write_package(tmp_path / "broken.deb", stamp_files())
    broken.write_bytes(broken.read_bytes()[:-400])
    for place, words in (
        ("empty", "no stamps"),
        ("odd.deb", "not a Debian"),
        ("none", "no such"),
        ("broken.deb", "cannot read"),
    ):
        with pytest.raises(InputError, match=words):
            load_stamps(tmp_path / place)
    few = {name: data for name, data in stamp_files().items() if "/bal." in name}
    with pytest.raises(SystemExit) as stopped:
        run_script(write_files(tmp_path / "few", few), tmp_path / "out", "--train", "9")
    assert stopped.value.code == 2 and "too few stamps" in capsys.readouterr().err
    (tmp_path / "there" / "train").mkdir(parents=True)
    with pytest.raises(SystemExit):
        run_script(source, tmp_path / "there")
    assert "exists already" in capsys.readouterr().err


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="needs Debian's tuxpaint-stamps-default")
def test_the_real_stamps():
    from stamps_questions import ask, pools
    from stamps_source import load_stamps

    stamps, skipped = load_stamps(INSTALLED)
    assert len(stamps) >= 600 and skipped["unreadable"] == 0
    assert len({stamp.category for stamp in stamps}) >= 14
    both = pools(stamps)
    assert {ask(both, "test", 0, index)[0].task.split("/")[1] for index in range(24)} >= {"kind-new", "count-new"}
