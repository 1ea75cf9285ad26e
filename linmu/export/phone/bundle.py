"""Targets android and ios: a bundle with one ExecuTorch program, whose methods are the graphs of its manifest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from linmu.errors import CheckFailed, InputError
from linmu.export.bundles.writer import (
    ExportReport,
    Plan,
    Progress,
    generation_facts,
    stored_precision,
    vision_manifest,
    write_planned,
)
from linmu.export.phone.delegates import XNNPACK, find_delegate
from linmu.export.phone.lowering import LEAST_SHARE, MethodReport, lower
from linmu.export.phone.methods import STYLE, decoder_methods, vision_method
from linmu.export.phone.segments import share_segments
from linmu.export.phone.stock import extra_of, metadata, stock_methods
from linmu.export.phone.tokenizer import match_everything
from linmu.export.phone.weights import program_weights
from linmu.export.vision.graph import OPSET
from linmu.formats.manifest import Manifest, state_bytes
from linmu.formats.presets import find_preset
from linmu.processing import Processor
from linmu.quantize.form import QuantizedForm
from linmu.quantize.plan import planned
from linmu.reference.student_manifest import model_facts
from linmu.reference.vision import build_vision
from linmu.runtimes.shape_ranges import largest_sizes, longest_call, profiles, recorded_ranges
from linmu.step.call_specs import manifest_states
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.version import __version__

PROGRAM = "model.pte"
BACKENDS = ("executorch",)
PACKAGES = ("torch", "transformers", "executorch", "torchao")
PIECE_TOKENS = 256  # of a prompt, in one call: a piece is one chunk of the scan, whose cost grows with its square
TOKEN_STEP, MOST_TOKENS = 64, 2048


def write_bundle(
    student: Path,
    out: Path,
    *,
    target: str,
    preset: str | None = None,
    calibration: Path | None = None,
    delegate: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export the student folder `student` to the bundle folder `out` for target "android" or "ios".

    preset: "none" or "fp32", or one of linmu.formats.presets, which needs `calibration`, a record of this
    student (and is 8da4w unless said). delegate: a name of linmu.export.phone.delegates (default: xnnpack). Raises
    InputError for an unusable student, family, preset or delegate, CheckFailed where the delegate takes less than
    LEAST_SHARE of a method's multiply-accumulates; nothing is left behind then.
    """
    quantization = planned(target, preset, calibration)
    if quantization is None and preset not in (None, "none", "fp32"):
        find_preset(target, preset)
    delegate = find_delegate(target, delegate, quantization is not None)
    writer = partial(write_program, delegate=delegate)
    plan = Plan(target, BACKENDS, "fp32", "fp32", STYLE, OPSET, writer=writer, quantization=quantization)
    return write_planned(student, out, plan, overwrite=overwrite, progress=progress)


def write_program(
    folder: Path,
    student: Path,
    model: PreTrainedModel,
    plan: Plan,
    say: Progress,
    quantized: QuantizedForm | None = None,
    *,
    delegate: str = XNNPACK,
) -> tuple[Manifest, dict[str, MethodReport]]:
    """model.pte with every method: a manifest without golden vectors and hashes, and a report of each method."""
    form = decoder_form(model) if quantized is None else quantized.form
    refuse(form)
    match_everything(folder / "tokenizer" / "tokenizer.json")
    processor = Processor.from_folder(folder)
    weights = program_weights(form)
    methods = decoder_methods(form, weights, PROGRAM, extra_of(form))
    vision: dict[str, Any] = {}
    tower, grid = None, (1, 1, 1)
    if form.vision:
        tower, grid = build_vision(model, form.family.name), model._prompt_rules.tile
        methods["vision"] = vision_method(tower, PROGRAM)
        vision = vision_manifest(tower.facts, processor)
    stock = stock_methods(form, weights, PROGRAM, tower, grid)
    states = manifest_states(form)
    manifest = Manifest(
        created_with={"linmu": __version__, **{name: version(name) for name in PACKAGES}},
        model=model_facts(student, model, form),
        target=plan.target,
        backends=plan.backends,
        precision=replace(stored_precision(plan, form), delegate=delegate),
        graphs={name: method.spec for name, method in methods.items()},
        state=states,
        state_bytes=state_bytes(states),
        vision=vision,
        generation=generation_facts(model, processor),
    )
    tokens = min(longest_call(manifest, PIECE_TOKENS, TOKEN_STEP), MOST_TOKENS)
    manifest = replace(manifest, profiles=profiles(manifest, tokens, PIECE_TOKENS))
    most = {name: largest_sizes(recorded_ranges(manifest, name)) for name in methods}
    most |= {name: {"tokens": tokens} for name in stock}
    most.pop("vision_encoder", None)
    say("lowering " + ", ".join(methods | stock))
    facts = metadata(form, tokens, _first_token(processor), processor.eos_token_ids)
    program, reports = lower(methods | stock, most, facts, delegate)
    require_delegated(reports, delegate)
    say(f"writing {PROGRAM}")
    with (folder / PROGRAM).open("wb") as file:
        program.write_to_file(file)
    share_segments(folder / PROGRAM)
    methods_json = {name: report.to_json() for name, report in reports.items()}
    return replace(manifest, program={"piece_tokens": PIECE_TOKENS, "methods": methods_json}), reports


def _first_token(processor: Processor) -> int:
    """The id that runners may put in front of a prompt when they are asked to; 0 where the tokenizer puts none."""
    return next(iter(processor.tokenizer.encode("").ids), 0)


def refuse(form: DecoderForm) -> None:
    """Raise InputError for what no method carries yet."""
    if form.family.vision == "grid":
        raise InputError(
            f"family {form.family.name} for a phone",
            got="a vision tower for pictures of any size",
            expected="a text family, or one whose pictures are tiles",
            fix="--target onnx or jetson",
        )


def require_delegated(reports: dict[str, MethodReport], delegate: str = XNNPACK) -> None:
    """Raise CheckFailed naming the method that the delegate takes too little of, and what it leaves."""
    for name, report in reports.items():
        if report.share < LEAST_SHARE:
            left = ", ".join(f"{count:.1e} of {kind}" for kind, count in report.left_macs.items())
            raise CheckFailed(
                f"{delegate} takes {report.share:.1%} of the multiply-accumulates of method {name}",
                got=f"left: {left}",
                expected=f"at least {LEAST_SHARE:.0%}",
                fix="--target onnx, and report it",
            )
