"""Model folders as models: teachers and students loaded with nothing dropped, and the files beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, PreTrainedModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from linmu.errors import InputError
from linmu.formats.gguf_rules import config_changes
from linmu.formats.model_files import ModelFolder, read_json_object
from linmu.model.modeling import LinMUForConditionalGeneration
from linmu.model.scaled import apply_scales

CONVERSION_FILE = "conversion.json"
DTYPES = ("auto", "float32", "bfloat16", "float16")
# What transformers raises for a folder it cannot use: weights, values of a config, a decoder of another kind.
UNUSABLE = (
    RuntimeError,
    ValueError,
    OSError,
    AttributeError,
    TypeError,
    KeyError,
    ArithmeticError,
    StrictDataclassError,
)
TOKENIZER_SOURCES = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")  # what tokenizer.json is made from
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    *TOKENIZER_SOURCES,
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)


def load_teacher(source: ModelFolder, dtype: str = "auto", adapter: Path | None = None) -> PreTrainedModel:
    """The teacher of a checked folder, on the CPU, in eval mode, with an adapter's weights merged into its own.

    FP8 weights become values of `dtype` ("auto": the config's, or bfloat16). Raises InputError when weights are
    missing, or when the folder or the adapter holds some that the model does not use.
    """
    cls = getattr(transformers, source.family.model_class)
    model = _load_gguf(cls, source, source.gguf, dtype) if source.gguf is not None else _load_plain(cls, source, dtype)
    if adapter is None:
        return model
    from linmu.model.adapter import merge_adapter

    return merge_adapter(model, adapter)


def model_config(source: ModelFolder) -> Any:
    """The teacher's config as transformers reads it; a GGUF file's with the rotary scaling that transformers skips."""
    cls = getattr(transformers, source.family.model_class).config_class
    try:
        if source.gguf is None:
            return cls.from_pretrained(source.folder, local_files_only=True)
        config = cls.from_pretrained(source.folder, local_files_only=True, gguf_file=source.gguf.name)
    except UNUSABLE as error:
        raise InputError(f"cannot use the config of {source.folder}", got=error, fix="check its config.json") from error
    changes = config_changes(source.gguf)
    config.rope_parameters = {**config.rope_parameters, **changes.pop("rope_parameters", {})}
    for name, value in changes.items():
        setattr(config, name, value)
    return config


def _load_plain(cls: Any, source: ModelFolder, dtype: str) -> PreTrainedModel:
    if not source.scales.weights:
        model, surplus = _load(cls, source.folder, dtype=dtype, use_safetensors=True)
    else:
        config = model_config(source)
        for part in (config, config.get_text_config()):
            vars(part).pop("quantization_config", None)
        if dtype == "auto":
            stored = config.dtype or config.get_text_config().dtype
            dtype = str(stored).removeprefix("torch.") if stored else "bfloat16"
        options = {"config": config, "dtype": getattr(torch, dtype), "use_safetensors": True}
        model, surplus = _load(cls, source.folder, **options)
    if source.scales.weights or source.scales.runtime:
        surplus -= apply_scales(model, source)
    _refuse_surplus(source.folder, surplus, f"a {cls.__name__}")
    return model


def _load_gguf(cls: Any, source: ModelFolder, gguf: Path, dtype: str) -> PreTrainedModel:
    dtype = "float32" if dtype == "auto" else dtype
    model, _ = _load(cls, source.folder, config=model_config(source), dtype=getattr(torch, dtype), gguf_file=gguf.name)
    # The weights are ordinary tensors by now; without these marks the model can be saved.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    return model


def load_student(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The student of a folder, on the CPU, in eval mode; raises InputError when it is none or weights are missing."""
    model, surplus = _load(LinMUForConditionalGeneration, Path(folder), dtype=dtype)
    _refuse_surplus(Path(folder), surplus, "a student")
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and its report on weights off the terminal: we show and judge them ourselves."""
    progress_bar, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if progress_bar:
            hf_logging.enable_progress_bar()


def _load(cls: Any, folder: Path, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of what the folder has besides (without what transformers knows to be no weight)."""
    try:
        with quiet():
            model, info = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except UNUSABLE as error:
        raise InputError(f"cannot load {folder}", got=error, fix="check its config.json and weights") from error
    missing = sorted(info["missing_keys"]) + sorted(str(item) for item in info["mismatched_keys"])
    if missing:
        raise InputError(
            f"{folder} lacks weights of its model",
            got=f"no {missing[0]} ({len(missing)} in all)",
            fix="copy the weight files and config.json of one and the same model",
        )
    return model.eval(), set(info["unexpected_keys"])


def _refuse_surplus(folder: Path, surplus: set[str], kind: str) -> None:
    if surplus:
        raise InputError(
            f"{folder} has weights that its model does not use",
            got=f"{min(surplus)} ({len(surplus)} in all)",
            expected=f"those of {kind}",
            fix="copy config.json and weights of one and the same model",
        )


def write_side_files(source: ModelFolder, folder: Path) -> None:
    """Copy the tokenizer's, processor's and licence files; make tokenizer.json where the teacher has an older form."""
    for name in SIDE_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    _name_processor(source, folder)
    if (folder / "tokenizer.json").is_file():
        return
    if source.gguf is not None:
        AutoTokenizer.from_pretrained(source.folder, gguf_file=source.gguf.name).save_pretrained(folder)
    elif any((source.folder / name).is_file() for name in TOKENIZER_SOURCES):
        AutoTokenizer.from_pretrained(source.folder, local_files_only=True).save_pretrained(folder)


def _name_processor(source: ModelFolder, folder: Path) -> None:
    """Name the processor's class where older folders leave it to the teacher's model_type, which a student has not."""
    files = [folder / name for name in PROCESSOR_FILES if (folder / name).is_file()]
    contents = [read_json_object(path) for path in files]
    if source.family.text_only or not files or any("processor_class" in content for content in contents):
        return
    named = {**contents[0], "processor_class": PROCESSOR_MAPPING_NAMES[source.family.name]}
    files[0].write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
