"""What can be exported: one literal table of targets and one of float presets; export goes through the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linmu.errors import InputError
from linmu.files.separate import require_separate

if TYPE_CHECKING:  # this imports torch
    from linmu.export.bundles.writer import ExportReport


@dataclass(frozen=True)
class Target:
    """Where a bundle is to run: default preset, and the module whose `write_bundle` makes it.

    options: what that function takes besides student, out, preset, overwrite and progress. packages: what it needs
    besides what every export needs, and the extra that installs them. fixed: options that are the target's own.
    """

    preset: str
    module: str
    options: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    extra: str = "export"
    fixed: dict[str, Any] = field(default_factory=dict)


def _phone(name: str) -> Target:
    module, options = "linmu.export.phone.bundle", ("calibration", "delegate")
    return Target("fp32", module, options, packages=("executorch",), extra="mobile", fixed={"target": name})


TARGETS: dict[str, Target] = {
    "onnx": Target("fp32", "linmu.export.onnx_bundle", ("plain_ops", "calibration", "budget_bytes", "state")),
    "jetson": Target("fp16", "linmu.export.jetson.bundle", ("compile_check", "calibration", "budget_bytes", "state")),
    "android": _phone("android"),
    "ios": _phone("ios"),
}
# Preset -> how matrices are stored. Target onnx computes everything in float32, jetson multiplies as it stores.
FLOATS: dict[str, str] = {"none": "fp32", "fp32": "fp32", "fp16": "fp16"}


def find_target(name: str) -> Target:
    """The row of a target; raises InputError for an unknown one."""
    if name not in TARGETS:
        raise InputError("target", got=repr(name), expected="one of " + ", ".join(TARGETS))
    return TARGETS[name]


def stored_floats(preset: str | None, target: Target) -> str:
    """How matrices are stored, "fp32" or "fp16"; raises InputError for a preset that does not exist."""
    preset = target.preset if preset is None else preset
    if preset not in FLOATS:
        raise InputError("preset", got=repr(preset), expected="one of " + ", ".join(FLOATS))
    return FLOATS[preset]


def write_bundle(student: Path | str, out: Path | str, *, target: str = "onnx", **options: Any) -> ExportReport:
    """Export the student folder `student` to the bundle folder `out`, through the target's own module.

    options: overwrite, progress(text) or progress(text, done, total), preset (linmu.formats.presets), and
    those of the target's row in TARGETS, which its module's `write_bundle` explains; None counts as not given.
    Raises InputError for an unknown target, for an option that the target does not have, for an `out` in the student
    or around it, and what the module raises; nothing is left behind then.
    """
    row = find_target(target)
    require_separate(out, student)
    if options.get("calibration") is not None:
        options["calibration"] = Path(options["calibration"])
    chosen = {name: value for name, value in options.items() if value is not None}
    known = ("preset", "overwrite", "progress", *row.options)
    if unknown := sorted(set(chosen) - set(known)):
        raise InputError(f"option {unknown[0]} of target {target}", expected="one of " + ", ".join(known))
    report: ExportReport = import_module(row.module).write_bundle(Path(student), Path(out), **chosen, **row.fixed)
    return report
