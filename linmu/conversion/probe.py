"""The default probe of a conversion: a paragraph and, for a vision-language model, one drawn picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linmu.families import Family
from linmu.files.scratch import scratch_folder
from linmu.layout import PromptRules
from linmu.model.hf_inputs import hf_inputs
from linmu.processing import Processor
from linmu.processing.convert import write_processor

TEXT = (
    "The harbour was quiet when the first boats came back. Two men carried baskets of silver fish along the wet "
    "stones, and a girl in a yellow coat counted them aloud: eleven, twelve, thirteen. Behind the market hall stood "
    "a clock that had been wrong for nine years; nobody wound it, because everyone knew that it was four minutes "
    "late. In 1987 a storm had taken the roof of the chapel and left the bell hanging in the open air. Visitors "
    "still ask why it never rings. The answer depends on whom you ask: the priest speaks of repairs, the mayor of "
    "money, and the children say that the bell is listening. How many baskets were there, and what colour was the "
    "coat? Describe what you see, then explain in one sentence why the clock is late."
)
HEIGHT, WIDTH = 168, 224
NEEDED = "tokenizer.json"
IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")


def default_probe(folder: Path, family: Family, rules: PromptRules | None) -> dict[str, Any] | None:
    """Arguments of the teacher's forward on the default prompt, prepared as on a device.

    `folder` holds config.json, tokenizer and processor files. None when it has no tokenizer or, for a
    vision-language model, no processor: a conversion then looks at random tokens. Raises InputError for processor
    files that linmu cannot follow.
    """
    if not (folder / NEEDED).is_file():
        return None
    if not family.text_only and not any((folder / name).is_file() for name in IMAGE_FILES):
        return None
    with scratch_folder(folder) as temporary:
        write_processor(folder, temporary)
        processor = Processor.from_folder(temporary)
    images = [] if family.text_only else [Image.fromarray(drawn_picture())]
    return hf_inputs(processor.encode(TEXT, images), rules)


def drawn_picture() -> np.ndarray:
    """A colour gradient with a disc, a square and stripes: [HEIGHT, WIDTH, 3] uint8, always the same."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture = np.stack([rows * 255 // HEIGHT, columns * 255 // WIDTH, 255 - rows * 255 // HEIGHT], -1).astype(np.uint8)
    picture[(rows - 60) ** 2 + (columns - 70) ** 2 < 40**2] = (230, 60, 40)
    picture[90:140, 130:190] = (40, 170, 80)
    picture[(rows > 145) & (columns // 9 % 2 == 0)] = (245, 245, 235)
    return picture
