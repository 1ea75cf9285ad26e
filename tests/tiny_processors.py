"""Processors of the tiny models that work without torchvision."""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
import transformers as hf
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import make_batched_metadata, make_batched_videos

VIDEO_FPS = 2.0
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class QwenVideoProcessorPil(VideoProcessorMixin):
    """Qwen's video preprocessing with the PIL image processor doing each frame (the stock one needs torchvision)."""

    model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def __init__(self, image_processor, patch_size: int, merge_size: int = 2, temporal_patch_size: int = 2, **kwargs):
        super().__init__(**kwargs)
        self.frames, self.patch_size = image_processor, patch_size
        self.merge_size, self.temporal_patch_size = merge_size, temporal_patch_size

    def to_dict(self) -> dict:
        """The saved form, without the image processor, which is saved on its own."""
        return {key: value for key, value in super().to_dict().items() if key != "frames"}

    def patches(self, video: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        """Frames [T,H,W,3] uint8 to (flat patches, grid t h w before merging)."""
        tool, patch, merge, step = self.frames, self.patch_size, self.merge_size, self.temporal_patch_size
        frames = []
        for frame in video:
            frame = tool.resize(frame.transpose(2, 0, 1), size=tool.size, resample=tool.resample, factor=patch * merge)
            frames.append(tool.normalize(tool.rescale(frame, 1 / 255), tool.image_mean, tool.image_std))
        frames += [frames[-1]] * (-len(frames) % step)
        pixels = torch.from_numpy(np.stack(frames).astype(np.float32))
        t, rows, columns = len(frames) // step, pixels.shape[2] // patch, pixels.shape[3] // patch
        pixels = pixels.view(t, step, 3, rows // merge, merge, patch, columns // merge, merge, patch)
        return pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * rows * columns, -1), [t, rows, columns]

    def __call__(self, videos, video_metadata=None, return_metadata=False, **kwargs) -> BatchFeature:
        """The stock processor's outputs for already sampled frames."""
        videos = make_batched_videos(videos)
        parts, grids = zip(*[self.patches(np.asarray(video)) for video in videos], strict=True)
        out = BatchFeature({"pixel_values_videos": torch.cat(parts), "video_grid_thw": torch.tensor(grids)})
        if return_metadata:
            out["video_metadata"] = make_batched_metadata(videos, video_metadata=video_metadata)
        return out


def without_torchvision(cls: type) -> type:
    """`cls` accepting any video processor: its own check needs a class that only torchvision brings."""

    def check(self, name, argument):
        return None if name == "video_processor" else cls.check_argument_for_proper_class(self, name, argument)

    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})


def chat_template(image: str, video: str) -> str:
    """The chat template with the family's placeholders."""
    return CHAT_TEMPLATE.replace("IMAGE", image).replace("VIDEO", video)


def qwen_processor(family: str, tokenizer):
    """Images and frames of 4 x 4 to 8 x 8 patches."""
    patch = 14 if family == "qwen2_5_vl" else 16
    size = {"shortest_edge": (4 * patch) ** 2, "longest_edge": (8 * patch) ** 2}
    images = hf.Qwen2VLImageProcessorPil(patch_size=patch, size=size)
    wrapped = "<|vision_start|>{}<|vision_end|>"
    video = wrapped.format("<|video_pad|>") if family == "qwen2_5_vl" else "<|video_pad|>"
    cls = hf.Qwen2_5_VLProcessor if family == "qwen2_5_vl" else hf.Qwen3VLProcessor
    return without_torchvision(cls)(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=QwenVideoProcessorPil(images, patch),
        chat_template=chat_template(wrapped.format("<|image_pad|>"), video),
    )


class VideoStandIn(VideoProcessorMixin):
    """Stands in for the video processors of SmolVLM and InternVL, which need torchvision; cannot process."""

    num_frames, fps = 4, 1


def idefics_processor(family: str, tokenizer):
    """Images split into tiles of 64 (SmolVLM) or 48 pixels plus a thumbnail."""
    tile, tokens = (64, 16) if family == "smolvlm" else (48, 9)
    template = chat_template("<image>", "<video>")
    size = {"size": {"longest_edge": 2 * tile}, "max_image_size": {"longest_edge": tile}}
    if family == "smolvlm" and importlib.util.find_spec("num2words"):
        images = hf.SmolVLMImageProcessorPil(**size)
        return without_torchvision(hf.SmolVLMProcessor)(
            images, tokenizer, VideoStandIn(), image_seq_len=tokens, chat_template=template
        )
    images = hf.SmolVLMImageProcessorPil(**size) if family == "smolvlm" else hf.Idefics3ImageProcessorPil(**size)
    return hf.Idefics3Processor(images, tokenizer, image_seq_len=tokens, chat_template=template)


def internvl_processor(tokenizer):
    """One to four tiles of 84 pixels, and a thumbnail when there is more than one."""
    images = hf.GotOcr2ImageProcessorPil(size={"height": 84, "width": 84}, crop_to_patches=True, max_patches=4)
    return without_torchvision(hf.InternVLProcessor)(
        images,
        tokenizer,
        VideoStandIn(),
        image_seq_length=9,
        chat_template=chat_template("<IMG_CONTEXT>\n", "<video>\n"),
    )


def llava_processor(family: str, tokenizer):
    """One centre crop of 42 (CLIP) or 56 pixels (Dinov2)."""
    side = 56 if family == "llava_dinov2" else 42
    cls = hf.BitImageProcessorPil if family == "llava_dinov2" else hf.CLIPImageProcessorPil
    images = cls(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        do_center_crop=True,
        do_resize=True,
        do_convert_rgb=True,
    )
    return hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n", ""),
    )


def tiny_processor(family: str, tokenizer):
    """The transformers processor of a tiny model; of a text-only family the tokenizer itself, with a chat template."""
    if family in ("qwen2_5_vl", "qwen3_vl"):
        return qwen_processor(family, tokenizer)
    if family in ("smolvlm", "idefics3"):
        return idefics_processor(family, tokenizer)
    if family == "internvl":
        return internvl_processor(tokenizer)
    if family in ("llava", "llava_dinov2"):
        return llava_processor(family, tokenizer)
    tokenizer.chat_template = chat_template("", "")
    return tokenizer
