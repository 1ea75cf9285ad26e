"""What a run and its stages did, and how that looks on a terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from linmu.distill.validation import Distance
from linmu.version import __version__


@dataclass(frozen=True)
class StageReport:
    """What a stage did: steps done, loss of its first and last log interval, distance to the teacher if validated.

    seconds: of the process that finished it; a stage that was resumed took longer in all.
    """

    number: int
    name: str
    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    distance: Distance | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StageReport:
        """Read `to_json`'s form."""
        distance = data["distance"]
        return cls(**{**data, "distance": None if distance is None else Distance(**distance)})


@dataclass(frozen=True)
class DistillReport:
    """What a run did: a report per stage of this run and of those finished before it; seconds of this run alone."""

    student: str
    teacher: str
    samples: int
    stages: tuple[StageReport, ...]
    seconds: float
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"linmu": __version__, **asdict(self)}


def distill_view(report: DistillReport) -> RenderableType:
    """A row for every stage."""
    windows = any(stage.distance is not None and stage.distance.kl_off is not None for stage in report.stages)
    quality = ["KL", "same token", "hidden error", *(["KL without window"] if windows else [])]
    names = ("stage", "steps", "first loss", "last loss", *quality, "seconds")
    table = Table(*names, title="distillation", title_justify="left")
    for stage in report.stages:
        distance, cells = stage.distance, [""] * len(quality)
        if distance is not None:
            cells[:3] = f"{distance.kl:.4g}", f"{distance.top1:.1%}", f"{distance.hidden:.4g}"
            if distance.kl_off is not None:
                cells[3] = f"{distance.kl_off:.4g}"
        losses = (f"{stage.first_loss:.4g}", f"{stage.last_loss:.4g}")
        table.add_row(f"{stage.number} {stage.name}", str(stage.steps), *losses, *cells, f"{stage.seconds:.0f}")
    return table
