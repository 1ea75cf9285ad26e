"""A tiny stand-in for the real teacher, and packages of one-coloured stamps and clip art."""

from __future__ import annotations

from pathlib import Path

import transformers as hf

from tests.examples.stamp_files import png, stamp_files, write_files
from tests.tiny import llava_config, randomise, tiny_tokenizer
from tests.tiny_processors import llava_processor

CLIPART = ("animals/cat_01", "animals/gatto_architetto_02", "food/fruit/apple1_bw_ganson", "unsorted/acrobat_x")


def write_sources(root: Path) -> tuple[Path, Path]:
    """Unpacked packages: stamps and clip art."""
    art = {f"{path}.png": png((30 * place, 90, 200), (40, 31 + place)) for place, path in enumerate(CLIPART)}
    return write_files(root / "stamps", stamp_files()), write_files(root / "clipart", art)


def write_teacher(folder: Path, template: str, layers: list[int]) -> Path:
    """A random LLaVA with a Dinov2 tower of 56 pixels that ends its answers with <|im_end|>."""
    tokenizer = tiny_tokenizer("llava_dinov2")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = llava_config(tokenizer, "dinov2")
    config.vision_feature_layer = layers
    config.text_config.eos_token_id = end
    model = hf.LlavaForConditionalGeneration(config).float().eval()
    randomise(model, 3)
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor = llava_processor("llava_dinov2", tokenizer)
    processor.chat_template = template
    processor.save_pretrained(folder)
    return folder
