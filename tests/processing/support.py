"""Bundles made from transformers processors, and pictures of many shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import transformers as hf
from PIL import Image

from linmu.processing import Processor
from linmu.processing.convert import write_processor
from tests.tiny import tiny_config, tiny_tokenizer
from tests.tiny_processors import chat_template, tiny_processor, without_torchvision


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise in `mode`, so that every wrong row, column or filter shows."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels, mode=mode)


def make_bundle(processor, family: str, root: Path, video: dict | None = None) -> Processor:
    """Save a transformers processor as a model folder, convert it, read the bundle."""
    model_type = "llava" if family == "llava_dinov2" else family
    folder, bundle = root / "model", root / "bundle"
    processor.save_pretrained(folder)
    tiny_config(family, tiny_tokenizer(family)).save_pretrained(folder)
    if video is not None:
        path = folder / "processor_config.json"
        config = json.loads(path.read_text()) | {"video_processor": video}
        path.write_text(json.dumps(config))
    write_processor(folder, bundle)
    made = Processor.from_folder(bundle)
    assert made.settings.family == model_type
    return made


def tiny_pair(family: str, root: Path, video: dict | None = None):
    """(transformers processor, our processor) of a tiny model."""
    processor = tiny_processor(family, tiny_tokenizer(family))
    return processor, make_bundle(processor, family, root, video)


def real_processor(family: str):
    """A transformers processor with the settings of published models."""
    tokenizer = tiny_tokenizer(family)
    if family == "idefics3":
        images = hf.Idefics3ImageProcessorPil(size={"longest_edge": 728}, max_image_size={"longest_edge": 364})
        return hf.Idefics3Processor(images, tokenizer, 169, chat_template=chat_template("<image>", ""))
    if family == "smolvlm":  # its processor needs num2words; Idefics3's does the same for images
        images = hf.SmolVLMImageProcessorPil(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
        return hf.Idefics3Processor(images, tokenizer, 64, chat_template=chat_template("<image>", "<video>"))
    if family in ("qwen2_5_vl", "qwen3_vl"):
        processor = tiny_processor(family, tokenizer)
        patch = processor.image_processor.patch_size
        sizes = {
            14: {"shortest_edge": 3136, "longest_edge": 400_000},
            16: {"shortest_edge": 65536, "longest_edge": 2**24},
        }
        processor.image_processor = hf.Qwen2VLImageProcessorPil(patch_size=patch, size=sizes[patch])
        return processor
    if family == "internvl":
        images = hf.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, min_patches=1, max_patches=12)
        processor = tiny_processor(family, tokenizer)
        return without_torchvision(hf.InternVLProcessor)(
            images, tokenizer, processor.video_processor, 256, chat_template=processor.chat_template
        )
    images = {
        "llava": hf.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        "llava_dinov2": hf.BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
    }[family]
    return hf.LlavaProcessor(
        images, tokenizer, 14, "default", chat_template=chat_template("<image>\n", ""), num_additional_image_tokens=1
    )


def hf_chat(processor, messages: list[dict]):
    """transformers' (chat text, token ids, pixel values or None)."""
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    out = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    return text, np.asarray(out["input_ids"][0]), out.get("pixel_values")


def pixels_of(inputs) -> np.ndarray:
    """All vision calls' pixels in one array."""
    return np.concatenate([call["pixel_values"] for call in inputs.vision_calls])


def user(images: list[Image.Image], text: str) -> dict:
    """One user message, images first."""
    return {
        "role": "user",
        "content": [{"type": "image", "image": i} for i in images] + [{"type": "text", "text": text}],
    }
