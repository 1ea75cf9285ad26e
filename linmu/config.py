"""The M-MATE block's configuration: one frozen dataclass, stored in config.json and in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from linmu.errors import InputError

SCANS = ("rms", "raster")
DECAYS = ("query_head", "kv_head")
WINDOW_PROJECTIONS = ("own", "shared")
TEXT_WINDOW = {"text_window": 64, "text_sinks": 4, "text_window_projections": "shared"}
RULES = ("gated", "gated_delta")
CARRIED_RULES = ("gated",)  # beyond PyTorch's student: by the step form, so by every target
MOST_WINDOW_TOKENS = 1 << 14  # an attention mask has this squared
_SMALLEST, _LARGEST = 1e-12, 1e12
_LIMITS: dict[str, tuple[float, float]] = {  # far beyond what makes sense: they keep damaged files from asking for much
    **dict.fromkeys(("window_frames", "window_rows", "window_columns"), (1, MOST_WINDOW_TOKENS)),
    "max_span_frames": (1, 1 << 20),
    "chunk_size": (1, 1 << 20),
    "taps": (2, 1 << 10),
    "text_window": (0, 1 << 20),
    "text_sinks": (0, 1 << 10),
    "norm_eps": (0.0, 1.0),
    "min_half_life": (_SMALLEST, _LARGEST),
    "max_half_life": (_SMALLEST, _LARGEST),
}


@dataclass(frozen=True)
class WindowSize:
    """Local-Swin window (frames, rows, columns) in tokens."""

    frames: int = 4
    rows: int = 8
    columns: int = 8


@dataclass(frozen=True)
class MMateConfig:
    """Settings of every M-MATE block (mmate.md, "Flex-MA" and "Local-Swin").

    rule: of the recurrence, "gated" (states add) or "gated_delta" (states correct what a key says already);
    taps: conv taps K; decay: one decay and state per query head or per key/value head;
    rope: rotate q and k in the state-space branch; scan: "rms" or "raster";
    backward, local_swin: switches for ablations; skip: the learned D v_t term (zero at init);
    window_*: Local-Swin window in tokens; causal_windows: causal instead of bidirectional windows;
    text_window: last tokens that text attends to besides the state-space branch (0: none, the paper's block);
    text_sinks: first tokens of a sequence that stay in the text window;
    text_window_projections: where its q, k, v come from: Local-Swin ("own") or Flex-MA before its conv ("shared");
    max_span_frames: frames of a video that form one bidirectional span;
    chunk_size: tokens per chunk of the parallel scan; norm_eps: epsilon of the per-head RMSNorm;
    min_half_life, max_half_life: tokens after which the fastest and slowest head have halved their state at init.
    The defaults are those of students that do not name a setting; `converted_with` has those of new ones.
    """

    rule: str = "gated"
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
    text_sinks: int = 0
    text_window_projections: str = "own"
    max_span_frames: int = 8
    chunk_size: int = 128
    norm_eps: float = 1e-5
    min_half_life: float = 4.0
    max_half_life: float = 65536.0

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), type(item.default))
        choices = {"rule": RULES, "decay": DECAYS, "scan": SCANS, "text_window_projections": WINDOW_PROJECTIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise _bad(name, repr(getattr(self, name)), "one of " + ", ".join(allowed))
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise _bad(name, getattr(self, name), f"{low} to {high}")
        if (tokens := self.window_frames * self.window_rows * self.window_columns) > MOST_WINDOW_TOKENS:
            raise _bad("window_frames x window_rows x window_columns", tokens, f"at most {MOST_WINDOW_TOKENS} tokens")
        if self.text_sinks and not self.text_window:
            raise _bad("text_sinks", self.text_sinks, "0 without a text_window")
        if not self.min_half_life <= self.max_half_life:
            raise _bad("max_half_life", self.max_half_life, f"at least min_half_life ({self.min_half_life})")

    def require_carried(self) -> None:
        """Raise InputError unless the step form, and with it calibration and every target, has these settings."""
        if self.rule not in CARRIED_RULES:
            raise InputError(
                "students of this rule run in PyTorch only: they cannot be calibrated or exported yet",
                got=f"rule {self.rule}",
                expected="rule " + " or ".join(CARRIED_RULES),
                fix="convert the teacher with --set rule=gated and distil it again",
            )

    @property
    def text_slots(self) -> int:
        """Keys and values that a layer keeps of text: sinks and the last tokens."""
        return self.text_sinks + self.text_window

    @property
    def window(self) -> WindowSize:
        """The Local-Swin window."""
        return WindowSize(self.window_frames, self.window_rows, self.window_columns)

    def state_heads(self, heads: int, kv_heads: int) -> int:
        """Heads that own a decay and a state, of so many query and key/value heads."""
        return heads if self.decay == "query_head" else kv_heads

    def mixes(self, vision: bool) -> bool:
        """Whether there is an alpha: windows over vision tokens, if prompts can hold some, or over text."""
        return (vision and self.local_swin) or self.text_window > 0

    def has_swin(self, vision: bool) -> bool:
        """Whether there are projections of windows' own: for vision tokens, or for a text window that shares none."""
        return (vision and self.local_swin) or self.own_text_window

    @property
    def own_text_window(self) -> bool:
        """Whether there is a text window with projections of its own."""
        return self.text_window > 0 and self.text_window_projections == "own"

    def gate_width(self, heads: int, vision: bool) -> int:
        """Columns of the gates g_f | g_b | alpha."""
        return heads * (2 * (vision and self.backward) + self.mixes(vision))

    def control_widths(self, heads: int, kv_heads: int, vision: bool) -> tuple[int, ...]:
        """Columns of an input projection behind q | k | v: dt forward; dt backward and gates where there are any."""
        directions = 2 if vision and self.backward else 1
        gates = self.gate_width(heads, vision)
        return (self.state_heads(heads, kv_heads),) * directions + ((gates,) if gates else ())

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> MMateConfig:
        """Read `to_json`'s form; raises InputError on an unknown key or a bad value."""
        if not isinstance(data, dict):
            raise InputError("M-MATE settings", got=type(data).__name__, expected="a JSON object")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InputError(
                "unknown M-MATE setting", got=", ".join(unknown), expected="one of " + ", ".join(sorted(known))
            )
        return cls(**data)


def converted_with(settings: Mapping[str, Any]) -> MMateConfig:
    """What `convert` uses where `settings` say nothing: the block with a text window; text_window=0 is the paper's.

    The window's other settings fall to their own defaults where there is none. Raises InputError as `from_json` does.
    """
    width = settings.get("text_window", TEXT_WINDOW["text_window"])
    return MMateConfig.from_json({**(TEXT_WINDOW if width else {}), **settings})


def _check_type(name: str, value: Any, kind: type) -> None:
    """Exact types: true is no number; a whole number will do for a float."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _bad(name, f"{type(value).__name__} {value!r:.60}", kind.__name__)


def _bad(name: str, got: object, expected: str) -> InputError:
    return InputError(f"mmate.{name}", got=got, expected=expected)
