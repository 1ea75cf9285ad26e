"""Assemble a standard LLaVA folder from real weights: DINOv2-small + projector + SmolLM2-135M (157M parameters).

The towers are pretrained; the projector between them is seeded noise. So the model speaks and its encoder sees, but
**what it says about a picture means nothing**: it exists to exercise conversion, export and devices on real weights.

    python examples/assemble_llava.py OUT [--language-only]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers as T
from pretrained import load_dinov2, load_smollm2

IMAGE_SIZE = 224
IMAGE_TOKEN = "<image>"
SEED = 0
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# SmolLM2's template with lists of content parts beside plain strings, and without its default system message.
SHORT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT_TEMPLATE = SHORT_TEMPLATE.replace(
    "{% for message in messages %}",
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}"
    "{% endif %}",
    1,
)


def assemble(
    out: Path,
    image_size: int = IMAGE_SIZE,
    feature_layer: int | list[int] = -1,
    chat_template: str = CHAT_TEMPLATE,
) -> T.LlavaForConditionalGeneration:
    """Write the LLaVA folder to `out` (safetensors, tokenizer, processor, chat template) and return its model.

    image_size: pixels a side, a multiple of 14; feature_layer: hidden states of the tower that the projector reads.
    """
    language, tokenizer = load_smollm2()
    vision = load_dinov2(image_size)
    tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]})
    tokenizer.chat_template = chat_template
    model = build_model(vision, language, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN), feature_layer)
    model.save_pretrained(out)
    build_processor(tokenizer, vision.config.patch_size, image_size, chat_template).save_pretrained(out)
    return model


def assemble_language(out: Path) -> T.LlamaForCausalLM:
    """Write SmolLM2-135M-Instruct alone to `out` as a standard folder and return its model."""
    language, tokenizer = load_smollm2()
    language.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return language


def build_model(
    vision: T.Dinov2Model, language: T.LlamaForCausalLM, image_token_id: int, feature_layer: int | list[int] = -1
) -> T.LlavaForConditionalGeneration:
    """Both towers and a seeded projector in one LLaVA; text logits stay those of `language`."""
    config = T.LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_index=image_token_id,
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=language.config.pad_token_id,
    )
    model = T.LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.resize_token_embeddings(image_token_id + 1, pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        # The mean row's logit is the mean of all logits: the new tokens can never be the most likely one.
        table[image_token_id:] = table[:image_token_id].mean(dim=0)
    model.tie_weights()
    seed_projector(model)
    model.generation_config = language.generation_config
    return model


@torch.no_grad()
def seed_projector(model: T.LlavaForConditionalGeneration) -> None:
    """Fill the projector with seeded noise whose output has the RMS of the token embeddings."""
    generator = torch.Generator().manual_seed(SEED)
    projector = model.model.multi_modal_projector
    for linear in (projector.linear_1, projector.linear_2):
        linear.weight.normal_(std=linear.in_features**-0.5, generator=generator)
        linear.bias.zero_()
    side = model.config.vision_config.image_size
    noise = torch.randn(1, 3, side, side, generator=generator)
    seen = torch.cat(model.get_image_features(noise).pooler_output)
    projector.linear_2.weight *= model.get_input_embeddings().weight.std() / seen.std()


def build_processor(
    tokenizer: T.PreTrainedTokenizerBase,
    patch_size: int,
    image_size: int = IMAGE_SIZE,
    chat_template: str = CHAT_TEMPLATE,
) -> T.LlavaProcessor:
    """DINOv2's picture preparation (shortest edge, centre crop, ImageNet statistics) and LLaVA's placeholders."""
    pictures = T.BitImageProcessorPil(
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=True,
    )
    return T.LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the "default" strategy drops again
        image_token=IMAGE_TOKEN,
        chat_template=chat_template,
    )


def main() -> None:
    """Write the folder named on the command line and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--language-only", action="store_true", help="SmolLM2-135M alone, without the vision tower")
    args = parser.parse_args()
    model = (assemble_language if args.language_only else assemble)(args.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.out}: {type(model).__name__}, {parameters / 1e6:.1f}M parameters")


if __name__ == "__main__":
    main()
