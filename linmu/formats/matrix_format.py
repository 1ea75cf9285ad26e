"""How a quantized matrix is written down, and its value: W[i, j] = q[i, j] * scale (numpy and torch alike).

Glossary (in = rows of W [in, out], the axis that is summed over)
    int8      q [in, out] int8 in -127..127, scale [out]; symmetric
    int4      q [in, out] int8 in -8..7, scale [in / group, out]; symmetric
    fp8       q [in, out] float8 E4M3 (kept as its bits, uint8), scale []
    input     what x is rounded to before the product: "" (not at all); "int8" or "fp8" with one static scale; or
              "int8_blocks": int8 with a scale of its own, max |x| / 127, for every `group` elements of every row; or
              "int8_rows": int8 with a scale and a zero point of its own for every row, which span the row and 0
Every static scale is a float16 number kept as float32, so that half-precision targets multiply by the same value
(those of groups behind "int8_rows" are cut to bfloat16 afterwards: XNNPACK keeps no more).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

WEIGHTS = ("int8", "int4", "fp8")
INPUTS = ("", "int8", "fp8", "int8_blocks", "int8_rows")
INT8_LARGEST, INT4_LARGEST, FP8_LARGEST = 127.0, 7.0, 448.0
GROUPS = (128, 64, 32, 16)  # rows that share a scale; one that does not divide a matrix shrinks
ROWS_GROUP = 32  # the smallest that XNNPACK multiplies rounded rows by
LARGEST = {
    "int8": INT8_LARGEST,
    "int8_blocks": INT8_LARGEST,
    "int8_rows": INT8_LARGEST,
    "int4": INT4_LARGEST,
    "fp8": FP8_LARGEST,
}


@dataclass(frozen=True)
class MatrixFormat:
    """weights: one of WEIGHTS; group: rows that share a scale (0: all); input: one of INPUTS."""

    weights: str
    group: int = 0
    input: str = ""

    @property
    def bits(self) -> int:
        """Bits of one weight."""
        return 4 if self.weights == "int4" else 8

    @property
    def float_input(self) -> MatrixFormat:
        """The same weights behind an input that is not rounded."""
        return replace(self, input="")

    @property
    def static_input(self) -> bool:
        """Whether inputs are rounded with a scale that calibration found."""
        return self.input in ("int8", "fp8")

    @property
    def smallest_group(self) -> int:
        """The smallest group that can take the place of this one."""
        return ROWS_GROUP if self.input == "int8_rows" else GROUPS[-1]

    def fitted(self, rows: int) -> MatrixFormat | None:
        """The format with a group that divides `rows`, smaller than its own if need be; None where there is none."""
        if not self.group:
            return self
        groups = (group for group in GROUPS if self.smallest_group <= group <= self.group and rows % group == 0)
        group = next(groups, None)
        return None if group is None else replace(self, group=group)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape of the scales of a matrix [rows, columns]."""
        if self.weights == "fp8":
            return ()
        return (rows // self.group, columns) if self.group else (columns,)

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Bytes of integers and float16 scales (and of a float16 input scale)."""
        scales = 1
        for size in self.scale_shape(rows, columns):
            scales *= size
        return rows * columns * self.bits // 8 + 2 * scales + (2 if self.static_input else 0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"weights": self.weights, "group": self.group, "input": self.input}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MatrixFormat:
        """Read `to_json`; raises TypeError on unknown keys, ValueError on an unknown format."""
        format = cls(**data)
        if type(format.group) is not int or format.group < 0:
            raise ValueError(f"unknown matrix format {data}")
        if (
            format.weights not in WEIGHTS
            or format.input not in INPUTS
            or format.group < (format.input == "int8_blocks")
        ):
            raise ValueError(f"unknown matrix format {data}")
        return format


def part(weight: str, kind: str) -> str:
    """Name of a quantized weight's part: "q", "scale", "input_scale" (0-dim) or "pre" ([in], multiplied into x)."""
    return f"{weight}.{kind}"
