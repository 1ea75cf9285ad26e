"""Checking a local model folder before anything heavy is imported: config.json, family and weight files (no torch)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linmu.config import MMateConfig
from linmu.errors import InputError
from linmu.families import STUDENT_PREFIX, Family, get_family
from linmu.formats.gguf_file import read_gguf
from linmu.formats.gguf_rules import check_gguf, rope_scaling
from linmu.formats.safetensors_file import read_header
from linmu.formats.scaled_weights import NO_SCALES, Scales, check_quantization, match_scales

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_GGUF_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


@dataclass(frozen=True)
class Weights:
    """The weight files of a folder: safetensors files, or one GGUF file; elements and bytes of all tensors."""

    files: tuple[Path, ...]
    gguf: Path | None
    parameters: int
    parameter_bytes: int


@dataclass(frozen=True)
class ModelFolder:
    """A checked teacher: config.json (for GGUF: model_type, and the metadata under "gguf"), weight files, scales."""

    folder: Path
    config: dict[str, Any]
    family: Family
    weights: tuple[Path, ...]
    gguf: Path | None
    parameters: int
    parameter_bytes: int
    scales: Scales = NO_SCALES


def read_model_folder(folder: Path) -> ModelFolder:
    """Check a local Hugging Face folder or a folder with one GGUF file.

    Raises InputError when the folder is missing, has no config.json, is of an unsupported family, needs code of its
    own, has only pickled weights, is or holds an adapter, is quantized by a method that is not carried, or when a
    weight file is missing, stale, truncated or of another format.
    """
    folder = Path(folder)
    _check_folder(folder)
    _refuse_adapter(folder)
    if not (folder / "config.json").is_file() and (gguf := find_gguf(folder)) is not None:
        return _gguf_folder(folder, gguf)
    config = read_config(folder)
    family = get_family(_model_type(folder, config))
    extra = folder / "hf_quant_config.json"  # NVIDIA Model Optimizer's
    check_quantization(config, read_json_object(extra) if extra.is_file() else {}, folder / "config.json")
    weights = find_weights(folder)
    return ModelFolder(
        folder,
        config,
        family,
        weights.files,
        weights.gguf,
        weights.parameters,
        weights.parameter_bytes,
        _scales(folder, config, weights.files),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; raises InputError when it is missing, no JSON object, or asks for code."""
    path = Path(folder) / "config.json"
    config = read_json_object(path, fix="give a folder with config.json and *.safetensors, or with one .gguf file")
    if "auto_map" in config or config.get("trust_remote_code"):
        raise InputError(
            f"{path} asks for code from the model folder (auto_map)",
            expected="a model that transformers itself implements",
            fix="use the variant of the model converted for transformers (often named with -hf)",
        )
    return config


def is_student(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a folder made by `linmu convert`."""
    return isinstance(config.get("linmu"), dict) and str(config.get("model_type")).startswith(STUDENT_PREFIX)


def read_student_config(folder: Path) -> dict[str, Any]:
    """The content of a student's config.json; raises InputError when the folder is none."""
    config = read_config(folder)
    if not is_student(config):
        lacks = "" if isinstance(config.get("linmu"), dict) else " without M-MATE settings"
        raise InputError(
            f"{folder} is not a student",
            got=f"a model of type {config.get('model_type')!r}{lacks}",
            expected="a folder made by `linmu convert`",
            fix=f"linmu convert {folder} -o STUDENT",
        )
    return config


def read_json_object(path: Path, fix: str | None = None) -> dict[str, Any]:
    """A JSON object from a file; raises InputError naming the file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no {path}", fix=fix) from error
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON", got=error, fix="copy or download the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}", got=type(content).__name__, expected="a JSON object")
    return content


def find_weights(folder: Path) -> Weights:
    """Find and check the weight files of a folder; raises InputError (`read_model_folder` says when)."""
    folder = Path(folder)
    if files := _safetensors(folder):
        headers = [read_header(path) for path in files]
        parameters = sum(header.parameters for header in headers)
        return Weights(tuple(files), None, parameters, sum(header.data_bytes for header in headers))
    if (gguf := find_gguf(folder)) is not None:
        model = read_gguf(gguf)
        return Weights((), gguf, model.parameters, model.data_bytes)
    if pickles := sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)):
        raise InputError(
            f"{folder} has only pickled weights ({pickles[0]}), which linmu never opens",
            expected="*.safetensors",
            fix="convert them where you trust them: load with transformers and call save_pretrained()",
        )
    raise InputError(f"{folder} has no weights", expected="*.safetensors or one .gguf file")


def _safetensors(folder: Path) -> list[Path]:
    """The files that transformers reads too: model.safetensors, or the shards of the index; [] when there are none."""
    single = folder / SINGLE_NAME
    if (folder / INDEX_NAME).exists():
        shards = _shards(folder)
        if single.is_file() and single not in shards:
            raise InputError(
                f"{folder} has two sets of weights",
                got=f"{SINGLE_NAME} and {INDEX_NAME}",
                expected="one",
                fix="delete the stale one",
            )
        return shards
    if single.is_file():
        return [single]
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} has no {SINGLE_NAME} and no {INDEX_NAME}",
            got=f"{others[0]} ({len(others)} in all)",
            fix="copy the index that belongs to the shards, or give a folder in the layout of transformers",
        )
    return []


def _refuse_adapter(folder: Path) -> None:
    adapter = next((name for name in _ADAPTER_FILES if (folder / name).is_file()), None)
    if adapter is None:
        return
    if any(folder.glob("*.gguf")) or (folder / SINGLE_NAME).is_file() or (folder / INDEX_NAME).is_file():
        raise InputError(
            f"{folder} has an adapter beside its weights",
            got=adapter,
            expected="a model alone",
            fix="move the adapter's files into a folder of their own; to merge it give that folder as --adapter",
        )
    raise InputError(
        f"{folder} is only an adapter",
        got=adapter,
        expected="a model folder",
        fix=f"linmu convert BASE_MODEL --adapter {folder}",
    )


def _scales(folder: Path, config: dict[str, Any], files: tuple[Path, ...]) -> Scales:
    tensors = {name: entry for path in files for name, entry in read_header(path).tensors.items()}
    text = config.get("text_config")
    parts = [config.get("quantization_config"), text.get("quantization_config") if isinstance(text, dict) else None]
    block = next((part["weight_block_size"] for part in parts if part and part.get("weight_block_size")), None)
    return match_scales(tensors, block, folder)


def find_gguf(folder: Path) -> Path | None:
    """The one .gguf file of a folder, None when there is none; raises InputError when there are several."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(path.name for path in files)
        raise InputError(f"{folder} has several GGUF files", got=names, expected="one", fix="leave one in the folder")
    return files[0] if files else None


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise InputError(f"{folder} is a file", expected="a model folder", fix="give the folder it stands in")
    raise InputError(
        f"no model folder {folder}",
        expected="a local Hugging Face model folder",
        fix="download the model first (hf download NAME --local-dir FOLDER); linmu itself never downloads",
    )


def _model_type(folder: Path, config: dict[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{folder / 'config.json'}: model_type", got=repr(model_type), expected="a family's name")
    return model_type


def _shards(folder: Path) -> list[Path]:
    path = folder / INDEX_NAME
    table = read_json_object(path).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{path}: weight_map", expected="tensor names with the files that hold them")
    files: list[Path] = []
    owners: dict[str, str] = {}
    for name in sorted(set(table.values())):
        if Path(name).name != name:
            raise InputError(f"{path}: shard {name!r}", expected="a file name without folders")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing", expected=f"the files {INDEX_NAME} names")
        present = read_header(folder / name).tensors
        if absent := sorted(key for key, shard in table.items() if shard == name and key not in present):
            raise InputError(f"{folder / name} lacks tensor {absent[0]!r}", expected=f"the tensors {INDEX_NAME} names")
        if twice := sorted(present.keys() & owners.keys()):
            raise InputError(
                f"{folder / name} and {owners[twice[0]]} hold the same tensor",
                got=twice[0],
                fix="copy the shards of one and the same model",
            )
        owners |= dict.fromkeys(present, name)
        files.append(folder / name)
    return files


def _gguf_folder(folder: Path, gguf: Path) -> ModelFolder:
    header = read_gguf(gguf)
    architecture = str(header.metadata.get("general.architecture"))
    family = get_family(_GGUF_FAMILIES.get(architecture, f"{architecture} (GGUF)"))
    check_gguf(gguf, header, architecture)
    rope_scaling(gguf, header, architecture)  # refused here, not after the weights were read
    config = {"model_type": family.name, "gguf": dict(header.metadata)}
    return ModelFolder(folder, config, family, (), gguf, header.parameters, header.data_bytes)


def require_student(folder: Path) -> None:
    """Raise InputError unless `folder` holds a student with whole weight files (checked without loading them)."""
    read_student_config(folder)
    find_weights(folder)


def require_exportable(folder: Path) -> None:
    """Raise InputError as `require_student` does, and for a student whose settings the step form does not carry."""
    require_student(folder)
    MMateConfig.from_json(read_student_config(folder)["linmu"]).require_carried()
