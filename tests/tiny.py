"""Random tiny models, tokenizers, processors and inputs of every supported family, made offline.

Sizes are pairwise distinct where a family allows it, so that a transposed axis cannot pass for the right one;
every bias and norm weight is random, so that a forgotten one shows.
"""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.tiny_processors import VIDEO_FPS, tiny_processor

__all__ = [
    "FAMILY_NAMES",
    "VISION_NAMES",
    "tiny_image",
    "tiny_inputs",
    "tiny_model",
    "tiny_processor",
    "tiny_tokenizer",
    "tiny_video",
]

HEADS, KV_HEADS, LAYERS = 4, 2, 3
HIDDEN, HEAD_DIM = 48, 16  # q 64, k and v 32; families without a head_dim field get 48 / 4 = 12 (q 48, k and v 24)

QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
SMOL_TOKENS = {
    "image_token": "<image>",
    "video_token": "<video>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    **{f"row_{r}_col_{c}_token": f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)},
}
SPECIAL_TOKENS = {
    "qwen2_5_vl": QWEN_TOKENS,
    "qwen3_vl": QWEN_TOKENS,
    "smolvlm": SMOL_TOKENS,
    "idefics3": SMOL_TOKENS,
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "llava": {"image_token": "<image>"},
    "llava_dinov2": {"image_token": "<image>"},
    "llama": {},
    "qwen2": {},
    "qwen3": {},
}
FAMILY_NAMES = tuple(SPECIAL_TOKENS)  # the nine of linmu.families, llava with a second (Dinov2) tower
VISION_NAMES = FAMILY_NAMES[:7]


def tiny_tokenizer(family: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges (lossless on any text) with the family's special tokens."""
    base = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate(base + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    extra = {"im_start_token": "<|im_start|>", "im_end_token": "<|im_end|>", **SPECIAL_TOKENS[family]}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=4096,
        extra_special_tokens=extra,
    )


def text_settings(vocab: int, *, head_dim: bool, **extra: object) -> dict:
    """Keyword arguments of a text config."""
    settings = {
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": 80,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **extra,
    }
    return {**settings, "head_dim": HEAD_DIM} if head_dim else settings


def qwen_settings(tokenizer) -> dict:
    """Token ids of a Qwen-VL config."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return {name: getattr(tokenizer, name) for name in names}


def qwen2_5_vl_config(tokenizer) -> hf.PretrainedConfig:
    """Two vision blocks (one windowed), M-RoPE sections 1+2+3, biases on q, k and v."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 3]}
    vision = dict(
        depth=2,
        hidden_size=32,
        out_hidden_size=HIDDEN,
        num_heads=2,
        intermediate_size=40,
        patch_size=14,
        window_size=56,
        fullatt_block_indexes=[1],
        tokens_per_second=2,
    )
    text = text_settings(len(tokenizer), head_dim=False, tie_word_embeddings=True, rope_parameters=rope)
    return hf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **qwen_settings(tokenizer)
    )


def qwen3_vl_config(tokenizer) -> hf.PretrainedConfig:
    """Three vision blocks, two of them tapped by DeepStack, interleaved M-RoPE 3+3+2, q and k norms."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    vision = dict(
        depth=3,
        hidden_size=32,
        out_hidden_size=HIDDEN,
        num_heads=2,
        intermediate_size=40,
        patch_size=16,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1],
    )
    text = text_settings(len(tokenizer), head_dim=True, tie_word_embeddings=True, rope_parameters=rope)
    return hf.Qwen3VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **qwen_settings(tokenizer)
    )


def idefics_config(tokenizer, family: str) -> hf.PretrainedConfig:
    """Square tiles of 16 tokens (SmolVLM) or 9 (Idefics3) after the pixel shuffle."""
    vision = dict(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        patch_size=8,
        image_size=64 if family == "smolvlm" else 48,
    )
    text = text_settings(len(tokenizer), head_dim=True, model_type="llama")
    cls = hf.SmolVLMConfig if family == "smolvlm" else hf.Idefics3Config
    return cls(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=family == "smolvlm",
        pad_token_id=0,
    )


def internvl_config(tokenizer) -> hf.PretrainedConfig:
    """Tiles of 84 pixels, 9 tokens each."""
    vision = dict(
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[84, 84],
        patch_size=[14, 14],
    )
    text = text_settings(len(tokenizer), head_dim=False, model_type="qwen2")
    return hf.InternVLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=9,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def llava_config(tokenizer, tower: str) -> hf.PretrainedConfig:
    """A CLIP tower (42 pixels, 9 tokens, layer -2) or a Dinov2 tower (56 pixels, 16 tokens, last layer)."""
    vision = dict(model_type=tower, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14)
    if tower == "dinov2":
        vision |= dict(image_size=56, mlp_ratio=2)
    else:
        vision |= dict(image_size=42, intermediate_size=40)
    text = text_settings(len(tokenizer), head_dim=True, model_type="llama")
    return hf.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=tokenizer.image_token_id,
        image_seq_length=16 if tower == "dinov2" else 9,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1 if tower == "dinov2" else -2,
    )


def tiny_config(family: str, tokenizer) -> hf.PretrainedConfig:
    """The config of a tiny model."""
    if family in ("llama", "qwen2", "qwen3"):
        cls = {"llama": hf.LlamaConfig, "qwen2": hf.Qwen2Config, "qwen3": hf.Qwen3Config}[family]
        return cls(**text_settings(len(tokenizer), head_dim=family != "qwen2", tie_word_embeddings=family == "qwen3"))
    if family in ("smolvlm", "idefics3"):
        return idefics_config(tokenizer, family)
    if family in ("llava", "llava_dinov2"):
        return llava_config(tokenizer, "dinov2" if family == "llava_dinov2" else "clip_vision_model")
    makers = {"qwen2_5_vl": qwen2_5_vl_config, "qwen3_vl": qwen3_vl_config, "internvl": internvl_config}
    return makers[family](tokenizer)


MODEL_CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
    "internvl": "InternVLForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "llava_dinov2": "LlavaForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Variance-preserving matrices, and noise on every bias and norm weight (the default init hides them)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)


def tiny_model(family: str, seed: int = 0) -> tuple[hf.PreTrainedModel, hf.PreTrainedTokenizerFast]:
    """A random float32 model in eval mode with three decoder layers, and its tokenizer.

    `family` is a name of linmu.families, or "llava_dinov2" for LLaVA with a Dinov2 tower.
    """
    tokenizer = tiny_tokenizer(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(hf, MODEL_CLASSES[family])(tiny_config(family, tokenizer))
    randomise(model, seed)
    model.generation_config.pad_token_id = 0
    return model.float().eval(), tokenizer


def tiny_image(seed: int = 0, size: tuple[int, int] = (140, 100)) -> Image.Image:
    """A smooth random RGB picture, `size` (width, height) in pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def tiny_video(seed: int = 0, frames: int = 6, size: tuple[int, int] = (140, 100)) -> np.ndarray:
    """A slowly changing clip [frames, height, width, 3] uint8."""
    first, last = (np.asarray(tiny_image(s, size), np.float32) for s in (2 * seed + 100, 2 * seed + 101))
    mix = np.linspace(0, 1, frames, dtype=np.float32)[:, None, None, None]
    return ((1 - mix) * first + mix * last).astype(np.uint8)


def placeholder(family: str, kind: str) -> str:
    """What the processor expands into the tokens of one image or video."""
    if family in ("qwen2_5_vl", "qwen3_vl"):
        pad = "<|image_pad|>" if kind == "image" else "<|video_pad|>"
        return pad if (family, kind) == ("qwen3_vl", "video") else f"<|vision_start|>{pad}<|vision_end|>"
    return "<IMG_CONTEXT>" if family == "internvl" else "<image>"


def tiny_inputs(family: str, model, tokenizer, kind: str = "image") -> dict[str, torch.Tensor]:
    """Batch-of-one inputs for `model(**inputs)`; kind "text", "image", "two_images" or "video".

    A video of a tile family is a series of frames, each an image of one tile.
    """
    if kind == "text":
        return dict(tokenizer(["What is the answer?"], return_tensors="pt", return_token_type_ids=False))
    processor = tiny_processor(family, tokenizer)
    if kind == "video" and family in ("qwen2_5_vl", "qwen3_vl"):
        metadata = [{"fps": VIDEO_FPS, "total_num_frames": 6, "frames_indices": list(range(6))}]
        text = f"See {placeholder(family, 'video')} what?"
        return dict(processor(text=[text], videos=[tiny_video()], video_metadata=metadata, return_tensors="pt"))
    size = (140, 100)
    if kind == "video":
        images = [Image.fromarray(frame).resize((40, 40)) for frame in tiny_video(frames=3)]
        text = "".join(f"Frame {i}: {placeholder(family, 'image')}\n" for i in range(3)) + "what?"
    elif kind == "two_images":
        images = [tiny_image(1, size), tiny_image(2, (90, 120))]
        text = f"First {placeholder(family, 'image')} then {placeholder(family, 'image')} which?"
    else:
        images, text = [tiny_image(0, size)], f"See {placeholder(family, 'image')} what?"
    if family in ("smolvlm", "idefics3"):
        options = {"do_image_splitting": False} if kind == "video" else {}
        return dict(processor(images=[images], text=[text], return_tensors="pt", **options))
    return dict(processor(images=images, text=[text], return_tensors="pt"))
