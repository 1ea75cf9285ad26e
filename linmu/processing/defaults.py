"""Literal tables of what Hugging Face processor files leave out: the defaults of each processor class."""

from __future__ import annotations

from typing import Any

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
BILINEAR, BICUBIC, LANCZOS = 2, 3, 1  # Pillow's numbers

SHARED: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
}
CROP_224: dict[str, Any] = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": BICUBIC,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_pad": False,
}
SQUARE_224: dict[str, Any] = {
    "image_mean": HALF,
    "image_std": HALF,
    "resample": BICUBIC,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "do_pad": False,
}
SPLIT: dict[str, Any] = {
    "image_mean": HALF,
    "image_std": HALF,
    "resample": LANCZOS,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "do_pad": True,
}
GRID: dict[str, Any] = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": BICUBIC,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
}
CANVAS: dict[str, Any] = {
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": BICUBIC,
    "size": {"height": 384, "width": 384},
    "min_patches": 1,
    "max_patches": 12,
}

# image processor class (without "Fast" or "Pil") -> what its files may leave out
IMAGE_CLASSES: dict[str, dict[str, Any]] = {
    "Qwen2VLImageProcessor": SHARED | GRID,
    "Idefics3ImageProcessor": SHARED | SPLIT,
    "SmolVLMImageProcessor": SHARED | SPLIT,
    "GotOcr2ImageProcessor": SHARED | CANVAS,
    "CLIPImageProcessor": SHARED | CROP_224,
    "CLIPFeatureExtractor": SHARED | CROP_224,
    "BitImageProcessor": SHARED | CROP_224,
    "LlavaImageProcessor": SHARED | CROP_224,
    "SiglipImageProcessor": SHARED | SQUARE_224,
    "ViTImageProcessor": SHARED | SQUARE_224 | {"resample": BILINEAR},
}

# family -> image processor classes it may have; the first when the file names none
FAMILY_IMAGE_CLASSES: dict[str, tuple[str, ...]] = {
    "qwen2_5_vl": ("Qwen2VLImageProcessor",),
    "qwen3_vl": ("Qwen2VLImageProcessor",),
    "smolvlm": ("SmolVLMImageProcessor", "Idefics3ImageProcessor"),
    "idefics3": ("Idefics3ImageProcessor", "SmolVLMImageProcessor"),
    "internvl": ("GotOcr2ImageProcessor",),
    "llava": (
        "CLIPImageProcessor",
        "CLIPFeatureExtractor",
        "BitImageProcessor",
        "LlavaImageProcessor",
        "SiglipImageProcessor",
        "ViTImageProcessor",
    ),
}

QWEN_SAMPLING: dict[str, Any] = {"min_frames": 4, "max_frames": 768, "fps": 2.0, "num_frames": None}

# family -> what its video processor's file may leave out; a family that is not here takes no video
VIDEO_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": SHARED
    | GRID
    | QWEN_SAMPLING
    | {
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
        "cap_pixels_per_frame": False,
        "max_video_tokens": 128000,
    },
    "qwen3_vl": SHARED
    | GRID
    | QWEN_SAMPLING
    | {
        "image_mean": HALF,
        "image_std": HALF,
        "patch_size": 16,
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
        "cap_pixels_per_frame": False,
        "max_video_tokens": 768,
    },
    "smolvlm": SHARED | SPLIT | {"fps": 1.0, "num_frames": 64},
    "internvl": SHARED | CANVAS | {"fps": None, "num_frames": None},
}

# family -> special tokens that the tokenizer's files may leave unnamed
TOKEN_DEFAULTS: dict[str, dict[str, str]] = {
    "qwen2_5_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    "qwen3_vl": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    "smolvlm": {
        "image_token": "<image>",
        "video_token": "<video>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    },
    "idefics3": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    },
    "internvl": {
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
    },
    "llava": {"image_token": "<image>"},
}

# our name -> the tokenizer's name, where InternVL's differs
TOKEN_NAMES: dict[str, tuple[str, ...]] = {
    "image": ("context_image_token", "image_token"),
    "video": ("video_token",),
    "vision_start": ("start_image_token", "vision_start_token"),
    "vision_end": ("end_image_token", "vision_end_token"),
    "fake_image": ("fake_image_token",),
    "global_image": ("global_image_token",),
}
