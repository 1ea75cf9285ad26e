"""What a bundle or student folder holds, and the memory it will need: graphs, sizes, state, forecast by context."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linmu.config import CARRIED_RULES, MMateConfig
from linmu.errors import InputError
from linmu.families import get_family
from linmu.formats.bundle import open_bundle
from linmu.formats.manifest import WEIGHT_SUFFIXES
from linmu.formats.manifest_object import MANIFEST_NAME
from linmu.formats.model_files import Weights, find_weights, read_config, require_student
from linmu.formats.safetensors_file import read_header
from linmu.tools.decoder_sizes import DecoderSizes, bundle_sizes, student_sizes
from linmu.tools.preset_memory import Decoder, PresetMemory, preset_memory

CONTEXTS = tuple(1024 * 2**power for power in range(8))  # 1k to 128k tokens


@dataclass(frozen=True)
class Forecast:
    """Bytes at a context length: ours (weights + state, and while prefilling at once) and the teacher's cache."""

    context: int
    decode_bytes: int
    prefill_bytes: int
    teacher_cache_bytes: int


@dataclass(frozen=True)
class Inspection:
    """Everything `linmu inspect` shows; sizes in bytes, graphs and files as in the manifest (empty for a student)."""

    kind: str  # "bundle" | "student"
    folder: str
    name: str
    family: str
    target: str | None
    precision: dict[str, Any]
    parameters: int
    weight_bytes: int
    state_bytes: int
    sizes: DecoderSizes
    mmate: dict[str, Any]
    graphs: dict[str, Any]
    state: list[dict[str, Any]]
    files: dict[str, int]
    forecast: tuple[Forecast, ...]
    presets: tuple[PresetMemory, ...] = ()  # of a student: what its bundles will take

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "forecast": [asdict(item) for item in self.forecast],
            "presets": [asdict(item) for item in self.presets],
        }


def inspect_folder(folder: Path | str) -> Inspection:
    """Inspect a bundle or a student folder (hashes are not verified); raises InputError when it is neither."""
    folder = Path(folder)
    if (folder / MANIFEST_NAME).exists():
        return _bundle(folder)
    if (folder / "config.json").exists():
        return _student(folder)
    raise InputError(
        f"{folder} is neither a bundle nor a student",
        expected=f"a folder with {MANIFEST_NAME} or config.json",
        fix="make one with `linmu convert` or `linmu export`",
    )


def forecast(sizes: DecoderSizes, weight_bytes: int, state_bytes: int) -> tuple[Forecast, ...]:
    """The memory forecast at every length of CONTEXTS; prefill as one call (shorter pieces need less)."""
    steady = weight_bytes + state_bytes
    return tuple(
        Forecast(tokens, steady, steady + sizes.prefill_bytes(tokens), sizes.cache_bytes(tokens)) for tokens in CONTEXTS
    )


def _bundle(folder: Path) -> Inspection:
    manifest = open_bundle(folder, verify_hashes=False).manifest
    model = manifest.model
    sizes = bundle_sizes(model)
    files = {name: entry.bytes for name, entry in manifest.files.items()}
    weight_bytes = sum(size for name, size in files.items() if name.endswith(WEIGHT_SUFFIXES))
    content = manifest.to_json()
    return Inspection(
        kind="bundle",
        folder=str(folder),
        name=model.name,
        family=model.family,
        target=manifest.target,
        precision=manifest.precision.to_json(),
        parameters=model.parameters,
        weight_bytes=weight_bytes,
        state_bytes=manifest.state_bytes,
        sizes=sizes,
        mmate=model.mmate.to_json(),
        graphs=content["graphs"],
        state=content["state"],
        files=files,
        forecast=forecast(sizes, weight_bytes, manifest.state_bytes),
    )


def _student(folder: Path) -> Inspection:
    require_student(folder)
    config = read_config(folder)
    mmate = MMateConfig.from_json(config["linmu"])
    sizes = student_sizes(config, folder)
    weights = find_weights(folder)
    total = sizes.state_bytes(mmate)
    return Inspection(
        kind="student",
        folder=str(folder),
        name=folder.resolve().name,
        family=str(config.get("model_type")).removeprefix("linmu_"),
        target=None,
        precision={"weights": config.get("dtype")},
        parameters=weights.parameters,
        weight_bytes=weights.parameter_bytes,
        state_bytes=total,
        sizes=sizes,
        mmate=mmate.to_json(),
        graphs={},
        state=[],
        files={path.name: path.stat().st_size for path in weights.files},
        forecast=forecast(sizes, weights.parameter_bytes, total),
        presets=_presets(config, sizes, mmate, weights),
    )


def _presets(
    config: dict[str, Any], sizes: DecoderSizes, mmate: MMateConfig, weights: Weights
) -> tuple[PresetMemory, ...]:
    """What every preset will take; empty for a config without a vocabulary, and for students without a step form."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    vocab = (text or {}).get("vocab_size")
    if type(vocab) is not int or vocab < 1 or mmate.rule not in CARRIED_RULES:
        return ()
    family = get_family(str(config.get("model_type")).removeprefix("linmu_"))
    tied = not any("lm_head.weight" in read_header(path).tensors for path in weights.files)
    return preset_memory(Decoder(sizes, mmate, vocab, tied, not family.text_only), weights.parameters)
