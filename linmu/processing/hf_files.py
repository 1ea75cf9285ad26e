"""The Hugging Face processor files of a folder, old and new layouts, as plain dicts (no transformers)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.processing.settings import read_json

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
PROCESSOR_CONFIG, TOKENIZER_CONFIG = "processor_config.json", "tokenizer_config.json"
TEMPLATE_JINJA, TEMPLATE_JSON = "chat_template.jinja", "chat_template.json"


def optional_json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} when there is no such file; InputError on anything else."""
    if not path.is_file():
        return {}
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"cannot use {path}", got=type(data).__name__, expected="a JSON object")
    return data


def image_config(folder: Path) -> dict[str, Any]:
    """The image processor's settings: nested in processor_config.json (new) or preprocessor_config.json (old)."""
    nested = optional_json(folder / PROCESSOR_CONFIG).get("image_processor")
    config = nested if isinstance(nested, dict) else optional_json(folder / IMAGE_FILE)
    if not config:
        raise InputError(
            f"no image processor settings in {folder}",
            expected=f"{PROCESSOR_CONFIG} with image_processor, or {IMAGE_FILE}",
            fix="copy the model's processor files there",
        )
    return config


def video_config(folder: Path) -> dict[str, Any]:
    """The video processor's settings; folders without a file of their own use the image processor's."""
    nested = optional_json(folder / PROCESSOR_CONFIG).get("video_processor")
    if isinstance(nested, dict):
        return nested
    return optional_json(folder / VIDEO_FILE) or image_config(folder)


def chat_template(folder: Path) -> str | None:
    """The chat template: chat_template.jinja, chat_template.json, or inside the tokenizer's or processor's config."""
    path = folder / TEMPLATE_JINJA
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {path}", got=error, expected="a text in UTF-8") from error
    for name in (TEMPLATE_JSON, PROCESSOR_CONFIG, TOKENIZER_CONFIG):
        template = _default_template(optional_json(folder / name).get("chat_template"))
        if template is not None:
            return template
    return None


def _default_template(value: Any) -> str | None:
    """A template, or the one named "default" of several."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def named_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by name ("bos_token", ...) from tokenizer_config.json and special_tokens_map.json."""
    named: dict[str, str] = {}
    for config in (optional_json(folder / "special_tokens_map.json"), optional_json(folder / TOKENIZER_CONFIG)):
        groups = [config, config.get("extra_special_tokens"), config.get("model_specific_special_tokens")]
        for group in groups:
            if isinstance(group, dict):
                named.update({name: text for name, value in group.items() if (text := _token_text(name, value))})
    return named


def _token_text(name: str, value: Any) -> str | None:
    """The text of a token entry: a string, or an object with "content"; None for other settings."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if name.endswith("_token") and isinstance(value, str) else None


def eos_token_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End-of-answer ids: generation_config.json, else config.json (or its text_config); () when neither tells."""
    text = config.get("text_config")
    for source in (optional_json(folder / "generation_config.json"), config, text if isinstance(text, dict) else {}):
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if value is not None and all(type(item) is int for item in ids):
            return tuple(ids)
    return ()
