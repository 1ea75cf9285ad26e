"""From a Hugging Face folder's processor files to a bundle's processor.json, tokenizer/ and chat_template.jinja."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from linmu.errors import InputError
from linmu.families import get_family
from linmu.layout.tiles import tile_of
from linmu.processing import defaults, hf_files
from linmu.processing.processor import PROCESSOR_FILE, TEMPLATE_FILE, TOKENIZER_FILE, TOKENIZER_FOLDER
from linmu.processing.settings import (
    CanvasSettings,
    CropSettings,
    GridSettings,
    ImageSettings,
    ProcessorSettings,
    SplitSettings,
    TokenSettings,
    VideoSettings,
    read_json,
)
from linmu.processing.settings_file import write_settings
from linmu.processing.tokens import load_tokenizer


def write_processor(teacher_or_student_folder: Path, bundle: Path) -> None:
    """Write processor.json, tokenizer/ and chat_template.jinja of a model folder into `bundle` (made if missing).

    Raises InputError when a file is missing or asks for preprocessing that is not supported.
    """
    folder, bundle = Path(teacher_or_student_folder), Path(bundle)
    tokenizer = load_tokenizer(folder / TOKENIZER_FILE)
    settings = read_folder(folder, tokenizer)
    target = bundle / TOKENIZER_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    _set_post_processor(tokenizer, hf_files.optional_json(folder / hf_files.TOKENIZER_CONFIG), settings.tokens)
    tokenizer.save(str(target / TOKENIZER_FILE))
    if (folder / hf_files.TOKENIZER_CONFIG).is_file():
        shutil.copyfile(folder / hf_files.TOKENIZER_CONFIG, target / hf_files.TOKENIZER_CONFIG)
    template = hf_files.chat_template(folder)
    _check_embedded(folder, settings.tokens, tokenizer, template or "")
    if template is not None:
        (bundle / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    write_settings(settings, bundle / PROCESSOR_FILE)


def vocabulary_of(folder: Path) -> int | None:
    """Rows of the embedding that a folder's config.json tells, or None."""
    config = read_json(folder / "config.json")
    text = config.get("text_config") if isinstance(config, dict) else None
    for source in (text, config):
        if isinstance(source, dict) and type(source.get("vocab_size")) is int:
            return int(source["vocab_size"])
    return None


def _check_embedded(folder: Path, tokens: TokenSettings, tokenizer: Tokenizer, template: str) -> None:
    """Every prompt has the template's control tokens and the media's: the model must have rows for them."""
    vocabulary = vocabulary_of(folder)
    if vocabulary is None:
        return
    names = {tokens.image, tokens.video, tokens.vision_start, tokens.vision_end, tokens.fake_image, tokens.global_image}
    for i, token in tokenizer.get_added_tokens_decoder().items():
        needed = token.content in names or (token.special and token.content in template) or i in tokens.eos_token_ids
        if i >= vocabulary and needed:
            raise InputError(
                f"{folder}: prompts hold a token that the model has no embedding for",
                got=f"{token.content!r}, id {i}",
                expected=f"ids below {vocabulary}",
                fix="resize the model's embeddings, or repair tokenizer.json",
            )


def read_folder(folder: Path, tokenizer: Tokenizer) -> ProcessorSettings:
    """The settings that a folder's Hugging Face files describe."""
    config = read_json(folder / "config.json")
    family = _family_name(config, folder)
    if get_family(family).text_only:
        return ProcessorSettings(family=family, tokens=_tokens(folder, config, family, tokenizer, ()))
    image = image_settings(family, hf_files.image_config(folder))
    video = video_settings(family, hf_files.video_config(folder)) if family in defaults.VIDEO_DEFAULTS else None
    tile_grid = _tile_grid(folder, config, family, image)
    tokens = _tokens(folder, config, family, tokenizer, tile_grid)
    return ProcessorSettings(family=family, tokens=tokens, image=image, video=video)


def _family_name(config: Any, folder: Path) -> str:
    """The family of a teacher's or student's folder (a student's model_type is its teacher's behind a prefix)."""
    if not isinstance(config, dict):
        raise InputError(f"cannot use {folder / 'config.json'}", got=type(config).__name__, expected="a JSON object")
    if isinstance(config.get("model_type"), str):
        return get_family(config["model_type"].removeprefix("linmu_")).name
    raise InputError(f"no model_type in {folder / 'config.json'}", expected="a Hugging Face model folder")


def image_settings(family: str, config: dict[str, Any]) -> ImageSettings:
    """Image settings of a family from an image processor's file, defaults filled in."""
    allowed = defaults.FAMILY_IMAGE_CLASSES[family]
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or allowed[0])
    name = name.removesuffix("Fast").removesuffix("Pil")
    if name not in allowed:
        raise InputError(f"image processor of a {family} model", got=name, expected="one of " + ", ".join(allowed))
    known = defaults.IMAGE_CLASSES[name]
    settings = {key: value for key, value in config.items() if value is not None}
    return _image(family, known | settings, volume=False)


def video_settings(family: str, config: dict[str, Any]) -> VideoSettings:
    """Video settings of a family from a video processor's (or, in old folders, the image processor's) file."""
    filled = {key: value for key, value in config.items() if value is not None}
    merged = defaults.VIDEO_DEFAULTS[family] | filled
    sampling = merged.get("video_sampling")
    if family == "smolvlm" and isinstance(sampling, dict):  # SmolVLM's older files
        merged |= {"num_frames": sampling["max_frames"], "fps": sampling["fps"], "size": sampling["video_size"]}
    if family == "smolvlm":
        merged["do_image_splitting"] = False
    if family == "internvl":
        merged["max_patches"] = 1
    names = ("fps", "num_frames", "min_frames", "max_frames", "cap_pixels_per_frame", "max_video_tokens")
    settings = {name: merged[name] for name in names if name in merged}
    if settings.get("fps") is not None:
        settings["fps"] = float(settings["fps"])
    return VideoSettings(frames=_image(family, merged, volume=family == "qwen3_vl"), **settings)


def _image(family: str, config: dict[str, Any], volume: bool) -> ImageSettings:
    """One settings class per kind of preprocessing."""
    if not config["do_resize"]:
        raise InputError("image processor setting do_resize", got=False, expected=True)
    shared: dict[str, Any] = {
        "mean": _three(config["image_mean"]),
        "std": _three(config["image_std"]),
        "resample": int(config["resample"]),
        "rescale_factor": float(config["rescale_factor"]),
        "do_rescale": bool(config["do_rescale"]),
        "do_normalize": bool(config["do_normalize"]),
    }
    if family in ("qwen2_5_vl", "qwen3_vl"):
        return _grid(config, shared, volume)
    if family in ("smolvlm", "idefics3"):
        longest, tile = _edge(config["size"], "longest_edge"), _edge(config["max_image_size"], "longest_edge")
        return SplitSettings(longest_edge=longest, tile=tile, split=bool(config["do_image_splitting"]), **shared)
    if family == "internvl":
        # crop_to_patches is not read: transformers' InternVL processor always turns it on for images
        height, width = _box(config["size"])
        low, high = int(config["min_patches"]), int(config["max_patches"])
        return CanvasSettings(height=height, width=width, min_tiles=min(low, high), max_tiles=high, **shared)
    return _crop(config, shared)


def _grid(config: dict[str, Any], shared: dict[str, Any], volume: bool) -> GridSettings:
    """Qwen's; `min_pixels` and `max_pixels` are the older names of the size limits and win."""
    size = config["size"] if isinstance(config["size"], dict) else {}
    return GridSettings(
        patch_size=int(config["patch_size"]),
        temporal_patch_size=int(config["temporal_patch_size"]),
        merge_size=int(config["merge_size"]),
        min_pixels=int(config.get("min_pixels") or _edge(size, "shortest_edge")),
        max_pixels=int(config.get("max_pixels") or _edge(size, "longest_edge")),
        volume=volume,
        **shared,
    )


def _crop(config: dict[str, Any], shared: dict[str, Any]) -> CropSettings:
    """CLIP's and its like; without a crop the resized image must have a fixed size."""
    size, crop = config["size"], (0, 0)
    if config["do_center_crop"]:
        crop = _box(config["crop_size"])
    shortest = size if isinstance(size, int) else size.get("shortest_edge", 0)
    if isinstance(size, int) and not config["do_center_crop"]:
        shortest, size = 0, {"height": size, "width": size}
    height, width = (0, 0) if shortest else _box(size)
    if shortest and not crop[0]:
        raise InputError("image processor without a fixed image size", got=size, expected="do_center_crop or a height")
    return CropSettings(
        shortest_edge=int(shortest),
        height=height,
        width=width,
        crop_height=crop[0],
        crop_width=crop[1],
        pad_to_square=bool(config["do_pad"]),
        **shared,
    )


def _three(value: Any) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise InputError("image_mean or image_std", got=value, expected="three numbers")
    return tuple(float(item) for item in values)


def _edge(size: Any, name: str) -> int:
    if not isinstance(size, dict) or not isinstance(size.get(name), int):
        raise InputError("image processor setting size", got=size, expected=f"an object with {name}")
    return size[name]


def _box(size: Any) -> tuple[int, int]:
    """Height and width of a size setting: an object, or one number."""
    return (size, size) if isinstance(size, int) else (_edge(size, "height"), _edge(size, "width"))


def _tile_grid(folder: Path, config: dict[str, Any], family: str, image: ImageSettings) -> tuple[int, ...]:
    """Rows and columns of tokens of one tile; () for grid families.

    A processor's file has the word, so that one of another model is found; the model's tile where it says nothing.
    """
    if isinstance(image, GridSettings):
        return ()
    processor = hf_files.optional_json(folder / hf_files.PROCESSOR_CONFIG)
    if isinstance(image, CropSettings):
        return _llava_grid(processor, config, image)
    name = "image_seq_length" if isinstance(image, CanvasSettings) else "image_seq_len"
    count = processor.get(name) or config.get(name) or tile_of(family, config).tokens
    side = math.isqrt(int(count))
    if side * side != count:
        raise InputError("tokens per tile", got=count, expected="a square number", fix=f"correct {name}")
    return (side, side)


def _llava_grid(processor: dict[str, Any], config: dict[str, Any], image: CropSettings) -> tuple[int, int]:
    """LLaVA's patches of one image; its class token must be dropped for the tokens to form a grid."""
    patch = processor.get("patch_size") or tile_of("llava", config).patch
    strategy = processor.get("vision_feature_select_strategy") or config.get(
        "vision_feature_select_strategy", "default"
    )
    extra = processor.get("num_additional_image_tokens")
    extra = (1 if strategy == "default" else 0) if extra is None else extra
    if extra != (1 if strategy == "default" else 0):
        raise InputError(
            "vision_feature_select_strategy",
            got=f"{strategy} with {extra} additional tokens",
            expected="image tokens that form a grid (default with 1, or full with 0)",
        )
    height, width = (image.crop_height, image.crop_width) if image.crop_height else (image.height, image.width)
    return (height // patch, width // patch)


def _tokens(
    folder: Path, config: dict[str, Any], family: str, tokenizer: Tokenizer, tile_grid: tuple[int, ...]
) -> TokenSettings:
    """Special tokens of a folder; InputError when one that the family needs is not in the tokenizer."""
    named = hf_files.named_tokens(folder)
    wanted = defaults.TOKEN_DEFAULTS.get(family, {})
    tokens: dict[str, str] = {}
    for ours, theirs in defaults.TOKEN_NAMES.items():
        for name in theirs:
            if name in wanted:
                tokens[ours] = named.get(name, wanted[name])
    needed = [tokens[name] for name in ("image", "video") if name in tokens and (name == "image" or not tile_grid)]
    if missing := [token for token in needed if tokenizer.token_to_id(token) is None]:
        raise InputError("the tokenizer lacks special tokens", got=f"no {missing}", fix="add them to tokenizer.json")
    eos = hf_files.eos_token_ids(folder, config)
    if not eos and (end := tokenizer.token_to_id(named.get("eos_token", ""))) is not None:
        eos = (end,)
    return TokenSettings(
        eos_token_ids=eos,
        template_variables=named,
        chat_adds_special_tokens=not get_family(family).text_only,
        tile_grid=tile_grid,
        **tokens,
    )


def _set_post_processor(tokenizer: Tokenizer, config: dict[str, Any], tokens: TokenSettings) -> None:
    """Add BOS and EOS as tokenizer_config.json says, where it says so (its flags win over tokenizer.json)."""
    if not {"add_bos_token", "add_eos_token"} & set(config):
        return
    parts, special = ["$A:0"], []
    for flag, name, place in (("add_bos_token", "bos_token", 0), ("add_eos_token", "eos_token", 99)):
        token = tokens.template_variables.get(name)
        if config.get(flag) and token is not None and (token_id := tokenizer.token_to_id(token)) is not None:
            parts.insert(place, f"{token}:0")
            special.append((token, token_id))
    tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=special)
