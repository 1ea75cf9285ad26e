"""The curves of a stage as a picture, drawn from its CSV files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linmu.distill.logs import read_csv
from linmu.distill.recipe import LOSSES
from linmu.errors import InputError
from linmu.files.atomic import atomic_file

SUFFIXES = (".png", ".svg")
PANELS = {"kl": "KL to the teacher (nats)", "top1": "same likeliest token", "hidden": "error of hidden states"}


def plot_stage(training: Path, validation: Path | None, picture: Path, title: str) -> bool:
    """Draw losses over steps and, where there is a validation file, its figures; a .png or .svg file.

    Returns False where matplotlib is not installed. Raises InputError for another ending or a log without rows.
    """
    if picture.suffix not in SUFFIXES:
        raise InputError(f"cannot draw {picture}", expected="a name ending in " + " or ".join(SUFFIXES))
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows, checks = read_csv(training), read_csv(validation) if validation is not None else []
    if not rows:
        raise InputError(f"{training} has no rows")
    panels = [name for name in PANELS if any(name in row for row in checks)]
    width = 4.5 * (1 + len(panels))
    figure = Figure(figsize=(width, 3.6))
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.2 / width, bottom=0.15, top=0.9, wspace=0.25)
    axes = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    for name in ("loss", *LOSSES):
        _curve(axes[0], rows, name)
    axes[0].set(xlabel="step", ylabel="loss", title=title)
    if all(row["loss"] > 0 for row in rows if "loss" in row):
        axes[0].set_yscale("log")
    axes[0].legend()
    for axis, name in zip(axes[1:], panels, strict=True):
        _curve(axis, checks, name)
        axis.set(xlabel="step", title=PANELS[name])
    with atomic_file(picture) as temporary:
        # without a date, the same curves give the same bytes
        metadata = {"Date": None} if picture.suffix == ".svg" else {"Software": None}
        figure.savefig(temporary, format=picture.suffix[1:], metadata=metadata)
    return True


def _curve(axis: Any, rows: list[dict[str, float]], name: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
        axis.grid(alpha=0.3)
