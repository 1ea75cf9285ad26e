"""What can be exported: one literal table of targets and one of precision presets."""

from __future__ import annotations

from dataclasses import dataclass

from linmu.errors import InputError


@dataclass(frozen=True)
class Target:
    """Where a bundle is to run: default precision, and the module whose `write_bundle` makes it (None: not yet)."""

    precision: str
    module: str | None


TARGETS: dict[str, Target] = {
    "onnx": Target("fp32", "linmu.export.onnx_bundle"),
    "jetson": Target("fp16", None),
    "android": Target("int8", None),
    "ios": Target("int8", None),
}
# Preset -> how matrices are stored. Everything is computed in float32.
PRECISIONS: dict[str, str] = {"none": "fp32", "fp32": "fp32", "fp16": "fp16"}


def find_target(name: str) -> Target:
    """The row of a target; raises InputError for an unknown one and for one that this release cannot export."""
    here = [key for key, target in TARGETS.items() if target.module is not None]
    if name not in TARGETS:
        raise InputError("target", got=repr(name), expected="one of " + ", ".join(TARGETS))
    if TARGETS[name].module is None:
        raise InputError(
            f"target {name!r} comes with a later release of linmu", expected=", ".join(here), fix="--target onnx"
        )
    return TARGETS[name]


def stored_precision(preset: str | None, target: Target) -> str:
    """How matrices are stored, "fp32" or "fp16"; raises InputError for a preset that does not exist."""
    preset = target.precision if preset is None else preset
    if preset not in PRECISIONS:
        raise InputError("precision preset", got=repr(preset), expected="one of " + ", ".join(PRECISIONS))
    return PRECISIONS[preset]
