"""How much memory a build takes, forecast before it starts.

FACTOR and BASE: building chains of matrix products with TensorRT-RTX 1.7 (no GPU; 384 and 768 MiB of weights, fp32 and
fp16) had peaks of 3.3 to 3.6 times the weights with a base of about 0.2 GiB. TensorRT's own builder also times kernels
on the GPU, which holds a copy there, and users report "3-4x" (NVIDIA/TensorRT-Edge-LLM, issue 30): hence 4 and a base
with room for its kernel libraries. It is a forecast for planning, measured on a desktop and not yet on a Jetson.
"""

from __future__ import annotations

from dataclasses import dataclass

from linmu.errors import InputError
from linmu.system.units import size

FACTOR = 4.0
BASE_BYTES = 512 * 2**20
WORKSPACE_SHARE = 0.5  # of what is left beside the forecast: the system and its caches need the rest


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one build: weights, forecast peak, what is available, and what kernels may use as workspace."""

    weight_bytes: int
    peak_bytes: int
    available_bytes: int
    workspace_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the forecast peak is available."""
        return self.peak_bytes <= self.available_bytes


def forecast_build(weight_bytes: int, available_bytes: int) -> MemoryForecast:
    """The forecast for a graph with `weight_bytes` of weights on a device with `available_bytes`."""
    peak = BASE_BYTES + int(FACTOR * weight_bytes)
    left = max(available_bytes - peak, 0)
    return MemoryForecast(weight_bytes, peak, available_bytes, max(int(WORKSPACE_SHARE * left), 16 * 2**20))


def require_memory(graph: str, forecast: MemoryForecast) -> None:
    """Raise InputError when a build cannot fit."""
    if not forecast.fits:
        weights = size(forecast.weight_bytes)
        raise InputError(
            f"building the {graph} engine would run out of memory",
            got=f"{size(forecast.available_bytes)} available",
            expected=f"about {size(forecast.peak_bytes)} ({FACTOR:.0f} x {weights} of weights + base)",
            fix="stop other programs, add swap, export with a smaller --quant, or try anyway with --ignore-memory",
        )
