"""Small data folders and processors of every tiny family."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from linmu.formats.data_folder import DataFolder, write_data_folder
from linmu.processing import Processor
from tests.processing.support import tiny_pair
from tests.tiny import VISION_NAMES, tiny_image, tiny_video

# small frames for the families that take videos
VIDEO = {
    "qwen2_5_vl": {"patch_size": 14, "size": {"shortest_edge": 56**2, "longest_edge": 112**2}},
    "qwen3_vl": {"patch_size": 16, "size": {"shortest_edge": 64**2, "longest_edge": 6 * 96**2}},
    "smolvlm": {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}, "num_frames": 8},
    "internvl": {"size": {"height": 84, "width": 84}},
}
FRAMES = 5


def family_processor(family: str, root: Path) -> Processor:
    """A tiny family's processor, with small videos where it takes any."""
    return tiny_pair(family, root / "pair", VIDEO.get(family))[1]


def family_items(family: str) -> list[tuple[dict, dict]]:
    """Samples of pairwise different lengths: text; one picture; two, or one and a video; a longer text."""
    text = {"id": "text", "prompt": "Say yes.", "answer": "yes"}
    last = {"id": "long", "prompt": "Count, please: " + "one more " * 9, "answer": "nine (9)", "task": "count"}
    if family not in VISION_NAMES:
        return [(text, {}), ({**text, "id": "second", "answer": "no, never"}, {}), (last, {})]
    one = {"id": "one", "images": ["a.png"], "prompt": "What is it?", "answer": "a häppy cat", "task": "name"}
    two = {"id": "two", "images": ["b.png", "a.png"], "prompt": "Which?", "answer": "the 2nd one"}
    media = {"b.png": tiny_image(2, (90, 121))}
    if family in VIDEO:
        two = {**two, "images": ["b.png"], "video": "c.mov"}
        media["c.mov"] = tiny_video(3, FRAMES, (66, 50))
    return [(text, {}), (one, {"a.png": tiny_image(1, (150, 100))}), (two, media), (last, {})]


def family_folder(family: str, root: Path) -> DataFolder:
    """The samples as a folder."""
    write_data_folder(root / "data", family_items(family))
    return DataFolder.open(root / "data")


@cache
def _places() -> dict[str, tuple[Processor, DataFolder]]:
    return {}


def family_data(family: str, factory) -> tuple[Processor, DataFolder]:
    """(processor, data) of a family, made once; `factory` is pytest's tmp_path_factory."""
    known = _places()
    if family not in known:
        root = factory.mktemp(family)
        known[family] = (family_processor(family, root), family_folder(family, root))
    return known[family]
