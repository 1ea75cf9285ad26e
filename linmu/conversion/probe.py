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
# Read behind the paragraph: other kinds of text, and things that are asked for again far behind where they stood.
MORE_TEXTS = (
    "Opening hours: Monday to Thursday 9:00-17:30, Friday 9:00-15:00, Saturday 10:00-13:00, Sunday closed.\n"
    "| item | pieces | price |\n|---|---:|---:|\n| rope | 12 | 8.40 |\n| lamp | 3 | 27.95 |\n| bucket | 40 | 2.15 |\n"
    "| compass | 1 | 63.00 |\n| tar | 6 | 11.20 |\nTotal of the order: 378.05, to be paid before the 30th of April.",
    'def mean_length(words):\n    """Average number of letters, 0 for no words."""\n    if not words:\n'
    '        return 0.0\n    total = 0\n    for word in words:\n        total += len(word.strip(".,;:!?"))\n'
    '    return total / len(words)\n\n\nfor line in open("letters.txt", encoding="utf-8"):\n'
    "    print(line.rstrip(), mean_length(line.split()))\n",
    "Water boils at a lower temperature on a mountain because the air above it weighs less, and a bubble of steam has "
    "to push less air aside. At 3,000 metres it boils at about 90 degrees, so potatoes take longer. A lid helps, since "
    "it keeps heat and some pressure inside. Salt raises the boiling point too, but by so little that nobody can taste "
    "the difference in time.\nQuestion: Why do potatoes take longer on a mountain?\nAnswer: Because water boils at a "
    "lower temperature there.\nQuestion: Does salt help?\nAnswer: Hardly; it raises the boiling point very little.",
    "Dear Mrs Okafor, thank you for your letter of 12 March. The two crates you asked about left Rotterdam on the "
    "Friday before Easter and should reach Lagos in the third week of May. I have told the agent, Mr Lindqvist, to "
    "call you as soon as the ship is in port. If anything is broken, please keep the packaging and send us pictures. "
    "With kind regards, Anna Vermeer.\nWho wrote the letter, to whom, and what is Mr Lindqvist asked to do? How much "
    "does a compass cost, on which day is the shop closed, how many baskets were counted in the harbour, and in which "
    "year did the storm take the roof of the chapel?",
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


def default_probes(folder: Path, family: Family, rules: PromptRules | None) -> list[dict[str, Any]] | None:
    """The prompts on which a conversion measures: the default one, and longer text; as `default_probe` otherwise."""
    first = default_probe(folder, family, rules)
    if first is None:
        return None
    with scratch_folder(folder) as temporary:
        write_processor(folder, temporary)
        processor = Processor.from_folder(temporary)
    text = hf_inputs(processor.encode("\n\n".join((TEXT, *MORE_TEXTS))), rules)
    return [text] if family.text_only else [first, text]


def drawn_picture() -> np.ndarray:
    """A colour gradient with a disc, a square and stripes: [HEIGHT, WIDTH, 3] uint8, always the same."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture = np.stack([rows * 255 // HEIGHT, columns * 255 // WIDTH, 255 - rows * 255 // HEIGHT], -1).astype(np.uint8)
    picture[(rows - 60) ** 2 + (columns - 70) ** 2 < 40**2] = (230, 60, 40)
    picture[90:140, 130:190] = (40, 170, 80)
    picture[(rows > 145) & (columns // 9 % 2 == 0)] = (245, 245, 235)
    return picture
