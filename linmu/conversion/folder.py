"""A teacher's folder in, a student's folder out, with everything a prompt needs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from linmu.config import MMateConfig
from linmu.conversion.convert import ConversionReport, convert
from linmu.conversion.probe import default_probes
from linmu.conversion.probe_data import ProbeData, data_probes, open_probe
from linmu.conversion.prompt_files import check_prompt_files
from linmu.errors import InputError
from linmu.files.atomic import atomic_folder
from linmu.files.separate import require_separate
from linmu.formats.model_files import ModelFolder, read_model_folder
from linmu.layout import PromptRules
from linmu.model.folders import CONVERSION_FILE, DTYPES, load_teacher, model_config, quiet, write_side_files
from linmu.model.modeling import teacher_config
from linmu.processing.encode import model_processor
from linmu.system.meter import peak_bytes
from linmu.version import __version__


@dataclass(frozen=True)
class FolderConversion(ConversionReport):
    """A ConversionReport with what the conversion took: seconds, bytes of the model, peak bytes of the process."""

    seconds: float
    parameter_bytes: int
    peak_bytes: int
    notes: tuple[str, ...] = ()  # what was done to the teacher's weights before, and on what it was measured

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        costs = {"seconds": self.seconds, "parameter_bytes": self.parameter_bytes, "peak_bytes": self.peak_bytes}
        return {**super().to_json(), **costs, "notes": list(self.notes)}


def convert_folder(
    teacher: Path | str,
    out: Path | str,
    *,
    mmate: MMateConfig | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    dtype: str = "auto",
    adapter: Path | str | None = None,
    probe: Path | str | None = None,
) -> FolderConversion:
    """Convert the model folder `teacher` (safetensors, or one GGUF file) and write the student folder `out`.

    mmate: None stands for `linmu.config.converted_with({})`, with a text window.
    adapter: folder of a LoRA adapter whose products are added to the teacher's weights first. probe: data folder of
    which up to 16 samples and 4,096 tokens are what initial values are measured on (default: built-in prompts).
    dtype: that of the student's weights; "auto" keeps the teacher's (GGUF: float32). progress(done, total) counts
    passes of the teacher. Besides the model, `out` gets the tokenizer's and processor's files and conversion.json, the
    report. Raises InputError for an unusable teacher, probe or target, or an `out` in or around an input; nothing is
    left behind then.
    """
    started = time.perf_counter()
    teacher, out, adapter = Path(teacher), Path(out), None if adapter is None else Path(adapter)
    probe = None if probe is None else Path(probe)
    if dtype not in DTYPES:
        raise InputError("dtype", got=repr(dtype), expected="one of " + ", ".join(DTYPES))
    require_separate(out, teacher, *(folder for folder in (adapter, probe) if folder is not None))
    source = read_model_folder(teacher)
    data = None if probe is None else open_probe(probe, source.family)
    if adapter is not None:
        from linmu.model.adapter import check_adapter  # peft takes its seconds to load

        check_adapter(adapter)
    with atomic_folder(out, overwrite=overwrite) as folder:
        config = model_config(source)
        config.save_pretrained(folder)  # the processor's settings depend on it
        write_side_files(source, folder)
        rules = None if source.family.text_only else PromptRules.from_config(teacher_config(config))
        check_prompt_files(folder, source.folder, source.family, rules)
        measured = None if data is None else data_probes(data, model_processor(folder), rules)
        prompts = default_probes(folder, source.family, rules) if measured is None else measured.prompts
        model = load_teacher(source, dtype, adapter)
        student = convert(model, mmate, prompts, progress)
        # False: keys as the class has them; the mapping from older names goes by the teacher's model_type
        with quiet():
            student.save_pretrained(folder, save_original_format=False)
        report = student.conversion_report
        _require_finite(report)
        _write_report(folder, source, report, student, _notes(source, _named(adapter), _named(probe), measured))
        size = sum(weight.numel() * weight.element_size() for weight in student.parameters())
        return FolderConversion(
            report.layers,
            report.hidden_nmse,
            report.token_agreement,
            report.probe_tokens,
            time.perf_counter() - started,
            size,
            peak_bytes(),
            _notes(source, adapter, probe, measured),
        )


def _notes(
    source: ModelFolder, adapter: Path | None, probe: Path | None, measured: ProbeData | None
) -> tuple[str, ...]:
    """What a user should know about the weights that were converted and what they were measured on."""
    notes = []
    if count := len(source.scales.weights):
        notes.append(f"{count} weights are stored as FP8 codes with scales: their values were converted")
    if kinds := sorted({name.rpartition(".")[2] for name in source.scales.runtime}):
        notes.append(f"{', '.join(kinds)} of the teacher only round activations and caches: the student has none")
    if adapter is not None:
        notes.append(f"{adapter} is merged into the student: distil it with a teacher that has it merged, too")
    if measured is not None:
        notes.append(f"measured on {measured.used} of {measured.samples} samples of {probe}, {measured.tokens} tokens")
    return tuple(notes)


def _named(folder: Path | None) -> Path | None:
    """The folder's own name: a student's folder says nothing of the machine it was made on."""
    return None if folder is None else Path(folder.resolve().name)


def _require_finite(report: ConversionReport) -> None:
    values = [
        value for layer in report.layers for value in (layer.nmse, layer.cosine, layer.rms_ratio, *layer.tries.values())
    ]
    if not all(math.isfinite(value) for value in (*values, *report.hidden_nmse)):
        raise InputError("the model's activations are not finite", fix="convert with --dtype float32")


def _write_report(
    folder: Path, source: ModelFolder, report: ConversionReport, student: PreTrainedModel, notes: tuple[str, ...]
) -> None:
    document = {
        "teacher": source.folder.resolve().name,
        "family": source.family.name,
        "notes": list(notes),
        "linmu": __version__,
        "mmate": student.mmate.to_json(),
        **report.to_json(),
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / CONVERSION_FILE).write_text(text + "\n", encoding="utf-8")
