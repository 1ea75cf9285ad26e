"""How inspections and diagnoses look on a terminal: rich tables from plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table

from linmu.system.units import size
from linmu.tools.doctor import Diagnosis
from linmu.tools.inspect import Inspection

if TYPE_CHECKING:  # these import torch
    from linmu.conversion.folder import FolderConversion
    from linmu.export.bundles.writer import ExportReport
    from linmu.quantize.state_choice import BudgetReport


def inspection_view(inspection: Inspection) -> RenderableType:
    """Summary, graphs and memory forecast of a bundle or student."""
    parts: list[RenderableType] = [_summary(inspection)]
    for name, graph in inspection.graphs.items():
        table = Table("", "name", "dtype", "shape", title=f"graph {name} ({graph['file']})", title_justify="left")
        for side, specs in (("in", graph["inputs"]), ("out", graph["outputs"])):
            for spec in specs:
                if not spec["name"].startswith(("past.", "present.")):
                    table.add_row(side, spec["name"], spec["dtype"], _shape(spec["shape"]))
        parts.append(table)
    if inspection.files:
        table = Table("file", "size", title="files", title_justify="left")
        for name, count in sorted(inspection.files.items(), key=lambda item: -item[1]):
            table.add_row(name, size(count))
        parts.append(table)
    parts.append(_forecast(inspection))
    if inspection.presets:
        parts.append(_presets(inspection))
    return Group(*parts)


def diagnosis_view(diagnosis: Diagnosis) -> RenderableType:
    """A table of components and a line for every target."""
    machine = f"{diagnosis.machine}, {diagnosis.board}" if diagnosis.board else diagnosis.machine
    table = Table("component", "version", "needed by", "to install", title=f"Python {diagnosis.python}, {machine}")
    for finding in diagnosis.findings:
        state = finding.version or "[red]missing[/red]"
        note = "" if finding.ok else (finding.problem + "; " if finding.problem else "") + finding.install
        table.add_row(finding.name, state, ", ".join(finding.needed_by), note.replace("[", "\\["))
    ready = Table("for", "ready", title="targets and extras", title_justify="left")
    for name, is_ready in diagnosis.ready().items():
        ready.add_row(name, "[green]yes[/green]" if is_ready else "no")
    return Group(table, ready)


def conversion_view(report: FolderConversion) -> RenderableType:
    """A row for every layer of an untrained student, what measurements buy, and what the conversion took."""
    table = Table(
        "layer",
        "blind",
        "decay",
        "alpha",
        "nmse",
        "cosine",
        "rms ratio",
        "hidden nmse",
        title="untrained student against its teacher",
        title_justify="left",
    )
    for layer, hidden in zip(report.layers, report.hidden_nmse, strict=True):
        tries = (layer.tries.get(name) for name in ("blind", "decay", "alpha"))
        values = (*tries, layer.nmse, layer.cosine, layer.rms_ratio, hidden)
        table.add_row(str(layer.layer), *("-" if value is None else f"{value:.3f}" for value in values))
    tokens = f"{report.token_agreement:.1%} of {report.probe_tokens} tokens agree before training"
    return Group(table, tokens, _took(report.seconds, report.peak_bytes, report.parameter_bytes, "the model"))


def export_view(report: ExportReport) -> RenderableType:
    """Nodes of every decoder graph, sizes, and what the export took."""
    if report.manifest.program:
        table = _methods_view(report.manifest.program["methods"])
    else:
        table = Table("graph", "nodes", "nodes in a layer", title_justify="left")
        for name, graph in report.graphs.items():
            table.add_row(name, str(graph.nodes), f"{graph.nodes_per_layer:.1f}")
    share = report.bundle_bytes / report.student_bytes
    sizes = f"bundle {size(report.bundle_bytes)} ({share:.2f} of the float32 weights)"
    state = f"state {size(report.manifest.state_bytes)}"
    took = _took(report.seconds, report.peak_bytes, report.student_bytes, "the float32 weights")
    budget = [] if report.budget is None else _budget_view(report.budget)
    return Group(table, *_check_view(report.check), sizes, state, *budget, took)


def _budget_view(report: BudgetReport) -> list[RenderableType]:
    """A row for every state precision that was looked at, and why one was taken."""
    title = f"budget of {report.budget_bytes:,} bytes (errors: squared, summed)"
    table = Table("state", "its bytes", "its error", "matrices", "their error", title=title, title_justify="left")
    for outcome in report.outcomes:
        state = outcome.state
        after = f"{state.error:.3g} ({state.roundings:,} steps)" if state.roundings else f"{state.error:.3g}"
        matrices = "do not fit" if outcome.matrix_error is None else f"{outcome.matrix_error:.3g}"
        table.add_row(state.precision, f"{state.stored_bytes:,}", after, f"{outcome.matrix_bytes:,}", matrices)
    return [table, f"state {report.chosen.state.precision}: {report.reason}"]


def _methods_view(methods: dict[str, Any]) -> Table:
    """Of an ExecuTorch program: what its delegate computes of every method, and the kernels that are left."""
    title = "share of the multiply-accumulates that the delegate computes"
    table = Table("method", "share", "calls of it", "left to portable kernels", title=title, title_justify="left")
    for name, method in sorted(methods.items()):
        left = ", ".join(f"{kernel} {count}" for kernel, count in method["left"].items())
        table.add_row(name, f"{method['share']:.1%}" if method["macs"] else "none", str(method["delegates"]), left)
    return table


def _check_view(check: dict[str, Any]) -> list[RenderableType]:
    """What the target's check found: a row for every compiled graph, or why there is none."""
    if not check:
        return []
    if not check["graphs"]:
        return [check["note"].replace("[", "\\[")]
    title = f"compiled by {check['compiler']} for {check['capability']}"
    table = Table("engine", "size", "seconds", "peak memory", title=title, title_justify="left")
    for name, graph in check["graphs"].items():
        table.add_row(name, size(graph["engine_bytes"]), f"{graph['seconds']:.1f}", size(graph["peak_bytes"]))
    return [table]


def _took(seconds: float, peak: int, model: int, what: str) -> str:
    return f"{seconds:.1f} s; peak memory {size(peak)}, {peak / model:.1f} times {what}"


def _named(value: str | int | list[str]) -> str:
    """A number or name, or names with slashes between them."""
    return "/".join(value) if isinstance(value, list) else str(value)


def _summary(inspection: Inspection) -> Table:
    table = Table(show_header=False, title=f"{inspection.kind} {inspection.folder}", title_justify="left")
    sizes = inspection.sizes
    rows = {
        "model": f"{inspection.name} ({inspection.family}), {inspection.parameters / 1e6:.1f} million parameters",
        "decoder": f"{sizes.layers} layers, hidden {sizes.hidden_size}, heads {sizes.heads}/{sizes.kv_heads}"
        f" of {sizes.head_dim}",
        "target": inspection.target or "",
        "precision": ", ".join(f"{key} {_named(value)}" for key, value in inspection.precision.items() if value),
        "weights": size(inspection.weight_bytes),
        "state": f"{size(inspection.state_bytes)} for one sequence, at any context length",
        "state tensors": f"{len(inspection.state)} (past.* and present.*)" if inspection.state else "",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    return table


def _forecast(inspection: Inspection) -> Table:
    table = Table(
        "context",
        "decoding",
        "prefill in one call (rough)",
        "teacher's fp16 KV cache alone",
        title="memory forecast",
        title_justify="left",
    )
    for item in inspection.forecast:
        cells = (item.decode_bytes, item.prefill_bytes, item.teacher_cache_bytes)
        table.add_row(f"{item.context // 1024}k", *(size(count) for count in cells))
    return table


def _presets(inspection: Inspection) -> Table:
    table = Table(
        "target",
        "--quant",
        "weights",
        "running",
        "peak of linmu build",
        title="bundles of this student (forecast)",
        title_justify="left",
    )
    for item in inspection.presets:
        build = size(item.build_peak_bytes) if item.build_peak_bytes else ""
        table.add_row(item.target, item.preset, size(item.weight_bytes), size(item.running_bytes), build)
    return table


def _shape(shape: list[int | str]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
