"""What an export is asked to quantize: a preset, its calibration, a budget; checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linmu.errors import InputError
from linmu.formats.presets import AUTO, AUTO_SCHEMES, RECORDED, find_preset


@dataclass(frozen=True)
class Quantization:
    """What an export is asked for: a preset of the target (or "auto" with a byte budget), a calibration record.

    head: whether the head may be quantized. A tied head is the table of embeddings too, and standard operators cannot
    read rows of packed integers. state: what states are to be rounded to, for "auto" (None: it chooses).
    """

    target: str
    preset: str
    calibration: Path
    budget_bytes: int | None = None
    head: bool = True
    state: str | None = None


def planned(
    target: str,
    preset: str | None,
    calibration: Path | None,
    budget_bytes: int | None = None,
    head: bool = True,
    state: str | None = None,
) -> Quantization | None:
    """The quantization of a target's preset, or None for a preset of float precision.

    A record alone stands for the target's preset of RECORDED, if there is one. Raises InputError for a preset that the
    target has not, one that lacks its record, and a budget without "auto".
    """
    if preset is None and calibration is not None:
        preset = RECORDED.get(target)
    if preset is None or preset in ("none", "fp32", "fp16"):
        if calibration is not None or budget_bytes is not None:
            option = "--calib" if calibration is not None else "--budget"
            raise InputError(f"{option} with a float preset", got=preset or "the default", fix="name one with --quant")
        return None
    if preset == AUTO and target not in AUTO_SCHEMES:
        raise InputError(f"target {target!r} has no --quant auto", expected=", ".join(AUTO_SCHEMES))
    if preset != AUTO:
        find_preset(target, preset)
    if (preset == AUTO) != (budget_bytes is not None):
        raise InputError(
            "--budget and --quant auto belong together", got=f"--quant {preset}", expected="--quant auto --budget BYTES"
        )
    if calibration is None:
        raise InputError(
            f"--quant {preset} needs a calibration record",
            fix="linmu calibrate STUDENT --data DATA -o calib.safetensors, then --calib FILE",
        )
    return Quantization(target, preset, calibration, budget_bytes, head, state)
