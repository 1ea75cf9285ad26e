"""The M-MATE block's configuration: one frozen dataclass, stored in config.json and in the manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from linmu.errors import InputError
from linmu.layout.types import WindowSize

SCANS = ("rms", "raster")
DECAYS = ("query_head", "kv_head")


@dataclass(frozen=True)
class MMateConfig:
    """Settings of every M-MATE block (mmate.md, "Flex-MA" and "Local-Swin").

    taps: conv taps K; decay: one decay and state per query head or per key/value head;
    rope: rotate q and k in the state-space branch; scan: "rms" or "raster";
    backward, local_swin: switches for ablations; skip: the learned D v_t term (zero at init);
    window_*: Local-Swin window in tokens; causal_windows: causal instead of bidirectional windows;
    text_window: tokens of sliding-window attention for text queries (0 = off, our extension);
    max_span_frames: frames of a video that form one bidirectional span;
    chunk_size: tokens per chunk of the parallel scan; norm_eps: epsilon of the per-head RMSNorm;
    min_half_life, max_half_life: tokens after which the fastest and slowest head have halved their state at init.
    """

    taps: int = 4
    decay: str = "query_head"
    rope: bool = True
    scan: str = "rms"
    backward: bool = True
    skip: bool = False
    local_swin: bool = True
    window_frames: int = 4
    window_rows: int = 8
    window_columns: int = 8
    causal_windows: bool = False
    text_window: int = 0
    max_span_frames: int = 8
    chunk_size: int = 128
    norm_eps: float = 1e-5
    min_half_life: float = 4.0
    max_half_life: float = 65536.0

    def __post_init__(self) -> None:
        for name, allowed in (("decay", DECAYS), ("scan", SCANS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"mmate.{name}", got=repr(getattr(self, name)), expected="one of " + ", ".join(allowed)
                )
        positive = ("window_frames", "window_rows", "window_columns", "max_span_frames", "chunk_size")
        for name, low in {**dict.fromkeys(positive, 1), "taps": 2, "text_window": 0}.items():
            if int(getattr(self, name)) < low:
                raise InputError(f"mmate.{name}", got=getattr(self, name), expected=f"at least {low}")

    @property
    def window(self) -> WindowSize:
        """The Local-Swin window."""
        return WindowSize(self.window_frames, self.window_rows, self.window_columns)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MMateConfig:
        """Read `to_json`'s form; raises InputError on an unknown key or a bad value."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(
                "unknown M-MATE setting", got=", ".join(unknown), expected="one of " + ", ".join(sorted(known))
            )
        return cls(**data)
