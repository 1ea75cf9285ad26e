"""Student folder -> bundle, the part that all targets share: weights once, processor, golden vectors, the manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from linmu.export.bundles.golden import write_golden
from linmu.export.bundles.readme import bundle_readme
from linmu.export.onnx.decoder_graphs import GraphReport, GraphStyle, write_decoder_graphs
from linmu.export.onnx.graph_builder import INT4_OPSET
from linmu.export.onnx.weight_file import write_weights
from linmu.export.vision.graph import export_vision
from linmu.files.atomic import atomic_folder
from linmu.formats.bundle import write_manifest
from linmu.formats.graph_check import check_graph_files, graph_weights
from linmu.formats.manifest import Manifest, state_bytes
from linmu.formats.model_files import require_exportable
from linmu.formats.precision import Precision
from linmu.formats.steady_header import steady_header
from linmu.model.mapped import open_student
from linmu.processing import Processor
from linmu.processing.convert import write_processor
from linmu.processing.settings import to_json
from linmu.quantize.form import QuantizedForm
from linmu.quantize.layer import MatrixReport
from linmu.quantize.plan import Quantization
from linmu.quantize.state_choice import BudgetReport
from linmu.quantize.student import quantize_student
from linmu.reference.half_range import too_wide
from linmu.reference.student_manifest import model_facts
from linmu.reference.vision import build_vision
from linmu.runtimes.shape_ranges import profiles
from linmu.specs import GraphSpec
from linmu.step.call_specs import manifest_states
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from linmu.system.meter import peak_bytes
from linmu.version import __version__

WEIGHTS = "weights.data"
PACKAGES = ("torch", "transformers", "onnx", "onnxscript")
MAX_NEW_TOKENS = 128

Progress = Callable[..., None]  # progress(text), or progress(text, done, total)
Check = Callable[[Path, Manifest], dict[str, Any]]
Writer = Callable[..., tuple[Manifest, dict[str, Any]]]  # arguments and results of `write_graphs`


@dataclass(frozen=True)
class Plan:
    """What a target decides about a bundle.

    weights, activations: "fp32" or "fp16", how matrices are stored and what their products are computed in (half
    precision products: linmu.step.half_ops). style: the decoder's graphs; vision_opset: the tower's.
    compiled: whether a device compiles the graphs, so that the manifest says their shape ranges and weights.
    check: looks at the written graphs before golden vectors are made; what it returns stands in the report, and an
    error that it raises ends the export. quantization: `weights` then holds for what stays float. state: what recurrent
    states are rounded to (state_precision), unless a byte budget chooses it. writer: what makes graphs and
    manifest in place of `write_graphs`.
    """

    target: str
    backends: tuple[str, ...]
    weights: str
    activations: str
    style: GraphStyle
    vision_opset: int
    compiled: bool = False
    check: Check | None = None
    quantization: Quantization | None = None
    state: str = "fp32"
    writer: Writer | None = None


@dataclass(frozen=True)
class ExportReport:
    """What an export made and took: manifest, size of each decoder graph, the target's check, seconds, bytes."""

    manifest: Manifest
    graphs: dict[str, Any]  # a GraphReport each, or what the plan's writer reports
    seconds: float
    bundle_bytes: int
    student_bytes: int  # of the student's parameters in float32
    peak_bytes: int
    check: dict[str, Any] = field(default_factory=dict)
    matrices: tuple[MatrixReport, ...] = ()  # of a quantized bundle
    budget: BudgetReport | None = None  # of one whose precisions a byte budget chose

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the manifest (which stands in the bundle)."""
        return {
            "target": self.manifest.target,
            "precision": self.manifest.precision.to_json(),
            "graphs": {name: _plain(report) for name, report in self.graphs.items()},
            "state_bytes": self.manifest.state_bytes,
            "seconds": self.seconds,
            "bundle_bytes": self.bundle_bytes,
            "student_bytes": self.student_bytes,
            "peak_bytes": self.peak_bytes,
            "check": self.check,
            "matrices": [vars(report) for report in self.matrices],
            "budget": None if self.budget is None else self.budget.to_json(),
        }


def write_planned(
    student: Path, out: Path, plan: Plan, *, overwrite: bool = False, progress: Progress | None = None
) -> ExportReport:
    """Export the student folder `student` to the bundle folder `out` as `plan` says.

    progress(text) and progress(text, done, total) report. Raises InputError for an unusable student; nothing is left
    behind then, nor when the plan's check fails.
    """
    started = time.perf_counter()
    student, say = Path(student), progress or _silent
    require_exportable(student)
    with atomic_folder(out, overwrite=overwrite) as folder:
        say("loading the student")
        model = open_student(student)
        write_processor(student, folder)
        quantized = None
        if plan.quantization is not None:
            say("quantizing")
            quantized = quantize_student(student, model, plan.quantization, say)
            if quantized.budget is not None:
                plan = replace(plan, state=quantized.budget.chosen.state.precision)
        write = plan.writer or write_graphs
        manifest, reports = write(folder, student, model, plan, say, quantized)
        check: dict[str, Any] = {}
        if plan.check is not None:
            say("checking the graphs")
            check = plan.check(folder, manifest)
        say("writing golden vectors")
        reference = None if quantized is None else quantized.form
        manifest = replace(manifest, golden=write_golden(folder, model, manifest, reference))
        for name in manifest.golden:
            if name.endswith(".safetensors"):
                steady_header(folder / name)
        (folder / "README.md").write_text(bundle_readme(folder, manifest), encoding="utf-8")
        say("hashing")
        manifest = write_manifest(folder, manifest)
        check_graph_files(folder, manifest)  # a device would refuse what is not on its list
    return ExportReport(
        manifest=manifest,
        graphs=reports,
        seconds=time.perf_counter() - started,
        bundle_bytes=sum(entry.bytes for entry in manifest.files.values()),
        student_bytes=4 * sum(weight.numel() for weight in model.parameters()),
        peak_bytes=peak_bytes(),
        check=check,
        matrices=() if quantized is None else tuple(quantized.reports.values()),
        budget=None if quantized is None else quantized.budget,
    )


def _plain(report: Any) -> dict[str, Any]:
    plain: dict[str, Any] = report.to_json() if hasattr(report, "to_json") else vars(report)
    return plain


def _silent(*_: Any) -> None:
    pass


def write_graphs(
    folder: Path,
    student: Path,
    model: PreTrainedModel,
    plan: Plan,
    say: Progress = lambda *_: None,
    quantized: QuantizedForm | None = None,
) -> tuple[Manifest, dict[str, GraphReport]]:
    """All graphs and their data files: a manifest without golden vectors and hashes, sizes of the decoder's graphs.

    `folder` holds the processor's files, `model` is the student of the folder `student`.
    """
    form, half = decoder_form(model), plan.weights == "fp16"
    form = replace(form if quantized is None else quantized.form, state=plan.state)
    vision: dict[str, Any] = {}
    graphs: dict[str, GraphSpec] = {}
    if form.vision:
        say("writing vision.onnx")
        tower = build_vision(model, form.family.name)
        path, products = folder / "vision.onnx", plan.activations == "fp16"
        with _quiet("torch.onnx"):
            graphs["vision"] = export_vision(
                tower, path, precision=plan.weights, opset=plan.vision_opset, half_products=products
            )
        vision = vision_manifest(tower.facts, Processor.from_folder(folder))
    float32_matrices: tuple[str, ...] = ()
    if plan.activations == "fp16":
        say("looking for matrices that float16 cannot multiply")
        float32_matrices = tuple(sorted({*too_wide(model, student), *_controls(form)}))
    stored = write_weights(
        folder / WEIGHTS,
        form.weights,
        half,
        lambda done, total: say("writing weights", done, total),
        float32_matrices,
        form.quantized,
        plan.style.ops == "fused",
    )
    say("writing token_embedding.onnx, prefill.onnx, step.onnx")
    decoder, reports = write_decoder_graphs(folder, form, stored, WEIGHTS, plan.style)
    manifest = Manifest(
        created_with={"linmu": __version__, **{name: version(name) for name in PACKAGES}},
        model=model_facts(student, model, form),
        target=plan.target,
        backends=plan.backends,
        precision=_precision(plan, form, float32_matrices),
        graphs=graphs | decoder,
        state=manifest_states(form),
        state_bytes=state_bytes(manifest_states(form)),
        vision=vision,
        generation=generation_facts(model, Processor.from_folder(folder)),
    )
    if plan.compiled:
        weights = graph_weights(folder, manifest.graphs)
        manifest = replace(manifest, profiles=profiles(manifest), graph_weights=weights)
    return manifest, reports


def _controls(form: DecoderForm) -> list[str]:
    """Where inputs are rounded: the small matrices of dt and gates, which then stay in float32.

    A product that falls on the other float16 number would move a whole input across rounding borders.
    """
    if not any(format.input for format in form.quantized.values()):
        return []
    return [name for name in form.weights if name.endswith(".controls")]


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger's warnings (that torchvision is absent, which nothing here needs) off the terminal."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def stored_precision(plan: Plan, form: DecoderForm) -> Precision:
    """How matrices and states are stored and matrices multiplied, for the manifest."""
    precision = Precision(
        weights=plan.weights, floats=plan.weights, activations=plan.activations, state=form.state, ops=plan.style.ops
    )
    if plan.quantization is None:
        return precision
    formats = form.quantized.values()
    return replace(
        precision,
        weights=plan.quantization.preset,
        group_size=max((format.group for format in formats), default=0) or None,
        matrix_inputs=tuple(sorted({format.input for format in formats} - {""})),
    )


def _precision(plan: Plan, form: DecoderForm, float32_matrices: tuple[str, ...]) -> Precision:
    """The same of ONNX graphs, with their opsets and the matrices that stay in float32."""
    int4 = plan.style.ops == "plain" and any(format.weights == "int4" for format in form.quantized.values())
    return replace(
        stored_precision(plan, form),
        float32_matrices=float32_matrices,
        opset=max(plan.style.opset, INT4_OPSET) if int4 else plan.style.opset,
        vision_opset=plan.vision_opset if form.vision else None,
    )


def vision_manifest(facts: dict[str, Any], processor: Processor) -> dict[str, Any]:
    """The tower's facts (linmu.layout.vision_grid) and, for readers, how pixels are prepared (as in processor.json)."""
    image = processor.settings.image
    assert image is not None  # a family with vision has image settings
    settings = to_json(image)
    tokens = facts.get("tokens_per_tile") or f"height * width / {facts['patch'] * facts['merge']}^2 pixels"
    return facts | {
        "image_size": facts.get("tile_size"),
        "tokens_per_image": tokens,
        "mean": settings.pop("mean"),
        "std": settings.pop("std"),
        "resize": settings,
    }


def generation_facts(model: PreTrainedModel, processor: Processor) -> dict[str, Any]:
    """What a manifest says about generation: end tokens, the usual length, positions of the teacher."""
    text = model.config.get_text_config()
    return {
        "eos_token_ids": list(processor.eos_token_ids),
        "max_new_tokens": MAX_NEW_TOKENS,
        "do_sample": False,
        "max_position_embeddings": text.max_position_embeddings,
    }
