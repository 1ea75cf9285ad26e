"""What each quantization preset does to a student's next-token distribution, with and without its algorithm.

    linmu calibrate STUDENT --data TRAIN -o calib.safetensors
    python benchmarks/quantization.py STUDENT calib.safetensors HELD_OUT [--samples 64]

Teacher-forced over the answers of held-out samples (all tokens of plain text), on the eager step form: KL in nats a
token against the float32 student (mean, 99th percentile, largest), share of equal likeliest tokens, and the relative
output error of the matrices. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from linmu.calibration.record import record_of
from linmu.calibration.samples import CalibrationSample, DataSamples
from linmu.formats.presets import PRESETS, Preset
from linmu.formats.weights_hash import student_weights_hash
from linmu.model.folders import load_student
from linmu.processing import ModelInputs
from linmu.processing.encode import model_processor
from linmu.quantize.form import preset_form
from linmu.reference.eager import StudentRunner
from linmu.reference.student_manifest import student_manifest
from linmu.step.pack import decoder_form
from linmu.verification.players import RunnerPlayer

PROMPT_TOKENS = 16  # of plain text: the rest is forced, token by token


def split_text(sample: CalibrationSample) -> CalibrationSample:
    """Plain text as a short prompt and the rest as its answer."""
    if sample.answer or len(sample.inputs.input_ids) <= PROMPT_TOKENS:
        return sample
    ids = sample.inputs.input_ids
    return CalibrationSample(sample.id, ModelInputs(ids[:PROMPT_TOKENS], ""), tuple(map(int, ids[PROMPT_TOKENS:])))


def log_probabilities(runner: StudentRunner, manifest, samples: list[CalibrationSample]) -> torch.Tensor:
    """[tokens, V] of every forced token of every sample."""
    rows = []
    for sample in samples:
        player = RunnerPlayer(runner, manifest, sample.inputs)
        rows.append(player.start().copy())
        rows += [player.step(token).copy() for token in sample.answer[:-1]]
    return torch.log_softmax(torch.from_numpy(np.stack(rows)), -1)


def variants() -> dict[str, Preset]:
    """Every preset, and the same without its algorithm; int4 also without AWQ's clipping and with other heads."""
    found: dict[str, Preset] = {}
    for target, presets in PRESETS.items():
        for name, preset in presets.items():
            if preset in found.values():
                continue  # android's and ios's are the same
            found[f"{target} {name}"] = preset
            assert preset.layers is not None
            others = {"max"} | ({"awq_lite"} if preset.layers.format.weights == "int4" else set())
            for other in sorted(others - {preset.layers.algorithm}):
                found[f"{target} {name}, {other}"] = replace(preset, layers=replace(preset.layers, algorithm=other))
    int4 = PRESETS["onnx"]["int4"]
    assert int4.layers is not None
    found["onnx int4, head int4"] = replace(int4, head=replace(int4.layers, algorithm="max"))
    found["onnx int4, head float"] = replace(int4, head=None)
    return found


def main() -> None:
    """Measure every variant against float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--only", default="", help="part of a variant's name")
    args = parser.parse_args()
    model, record = load_student(args.student), record_of(args.record, student_weights_hash(args.student))
    form = decoder_form(model)
    manifest = student_manifest(args.student, model, form)
    samples = [split_text(s) for s in DataSamples(args.data, model_processor(args.student), args.samples).read(0)]
    wanted = log_probabilities(StudentRunner(model), manifest, samples)
    table = {}
    for name, preset in variants().items():
        if args.only not in name:
            continue
        quantized = preset_form(form, record, preset)
        found = log_probabilities(StudentRunner(model, form=quantized.form), manifest, samples)
        kl = (wanted.exp() * (wanted - found)).sum(-1)
        errors = [report.error for report in quantized.reports.values() if report.error]
        table[name] = {
            "kl_mean": float(kl.mean()),
            "kl_p99": float(kl.quantile(0.99)),
            "kl_max": float(kl.max()),
            "same_token": float((wanted.argmax(-1) == found.argmax(-1)).float().mean()),
            "error_mean": float(np.mean(errors)),
            "error_max": float(np.max(errors)),
        }
        print(f"{name:28}", " ".join(f"{key} {value:.5f}" for key, value in table[name].items()), file=sys.stderr)
    print(json.dumps({"tokens": len(wanted), "samples": len(samples), "variants": table}))


if __name__ == "__main__":
    main()
