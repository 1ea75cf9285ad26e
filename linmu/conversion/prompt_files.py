"""Whether a model folder has what prompts need, and whether its processor makes pictures of the model's length.

An export needs a tokenizer and a processor; what is missing or contradicts the model is found when a teacher is
converted, before its weights are read.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from linmu.conversion.probe import IMAGE_FILES, NEEDED
from linmu.errors import InputError
from linmu.families import Family
from linmu.formats.model_files import read_json_object
from linmu.layout import PromptRules
from linmu.processing import Processor
from linmu.processing.convert import write_processor
from linmu.processing.settings import CanvasSettings, GridSettings, SplitSettings

LLAVA_TOWERS = ("clip_vision_model", "dinov2")  # those that linmu.reference.vision_tiles knows
# Settings of Qwen's image processor and what the tower's config calls them.
GRID_NAMES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
COPY = "copy config.json, tokenizer and processor files of one and the same model"


def check_prompt_files(folder: Path, source: Path, family: Family, rules: PromptRules | None) -> None:
    """Check the tokenizer and processor of `folder`, which has the files of the teacher `source`, against its config.

    Raises InputError when one is missing, cannot be followed, or makes pictures of another length than the model's.
    """
    if not (folder / NEEDED).is_file():
        raise InputError(f"{source} has no tokenizer", expected=f"{NEEDED}, or a file it can be made from", fix=COPY)
    if rules is not None and not any((folder / name).is_file() for name in IMAGE_FILES):
        raise InputError(f"{source} has no image processor", expected=" or ".join(IMAGE_FILES), fix=COPY)
    with tempfile.TemporaryDirectory() as temporary:
        write_processor(folder, Path(temporary))
        processor = Processor.from_folder(temporary)
    if rules is None:
        return
    vision = read_json_object(folder / "config.json").get("vision_config") or {}
    tower = vision.get("model_type", LLAVA_TOWERS[0])
    if family.name == "llava" and tower not in LLAVA_TOWERS:
        raise InputError(
            "vision tower of this LLaVA",
            got=tower,
            expected=" or ".join(LLAVA_TOWERS),
            fix="convert a LLaVA with one of these towers",
        )
    _check_lengths(processor, vision, source, rules)


def _check_lengths(processor: Processor, vision: dict[str, Any], source: Path, rules: PromptRules) -> None:
    image, tile_grid = processor.settings.image, processor.settings.tokens.tile_grid
    if isinstance(image, GridSettings):
        for ours, theirs in GRID_NAMES.items():
            if theirs in vision and getattr(image, ours) != vision[theirs]:
                raise _other(source, ours, getattr(image, ours), f"{vision[theirs]}, the model's {theirs}")
        return
    if math.prod(tile_grid) != rules.tokens_per_tile:
        raise _other(
            source, "tokens of a picture's tile", math.prod(tile_grid), f"{rules.tokens_per_tile}, the model's"
        )
    size = vision.get("image_size")
    sides = tuple(size) if isinstance(size, list) else (size, size)
    if isinstance(image, SplitSettings) and size is not None and (image.tile, image.tile) != sides:
        raise _other(source, "pixels of a tile", image.tile, f"{size}, the model's image_size")
    if isinstance(image, CanvasSettings) and size is not None and (image.height, image.width) != sides:
        raise _other(source, "pixels of a tile", f"{image.height} x {image.width}", f"{size}, the model's image_size")


def _other(source: Path, what: str, got: object, expected: str) -> InputError:
    return InputError(f"the processor of {source} is not its model's: {what}", got=got, expected=expected, fix=COPY)
