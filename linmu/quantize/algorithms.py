"""SmoothQuant, AWQ and plain maxima through NVIDIA Model Optimizer, on the rows of a calibration record.

Every group of matrices that share an input is one linear layer for the library, so that they get one scale on it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from linmu.calibration.statistics import InputStatistics
from linmu.errors import MissingComponentError
from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.presets import Scheme

NOTHING = 2.0**-31  # what the library takes for zero
SMOOTH_ALPHA = 0.5  # how much of the difficulty moves from the input to the weights (SmoothQuant, eq. 4)
AWQ_STEP = 0.1  # grid of AWQ's exponent
# of a group's largest |w|; from 0.5 on, the default, errors are within 1.5% and the search takes twice the time
CLIP = {"min_clip_ratio": 0.8, "shrink_step": 0.05}


@dataclass(frozen=True)
class MatrixScales:
    """What an algorithm settled on: factor on the input [in] or None, largest |w| by scale, largest |x| or None."""

    pre: np.ndarray | None
    amax: np.ndarray
    input_amax: float | None


def find_scales(weight: np.ndarray, scheme: Scheme, statistics: InputStatistics) -> MatrixScales:
    """Run the scheme's algorithm on W [in, out] and the statistics of its input.

    SmoothQuant divides by what it saw of an input channel and of its weights. Channels of which either is always zero
    are kept from it and get the middle one of all factors. Raises MissingComponentError when Model Optimizer is not
    installed.
    """
    rows = _rows(scheme, statistics)
    if scheme.algorithm != "smoothquant":
        return _find(weight, scheme, rows)
    live = (statistics.amax > NOTHING) & (np.abs(weight).max(axis=1) > NOTHING)
    if live.all():
        return _find(weight, scheme, rows)
    if not live.any():
        return _find(weight, replace(scheme, algorithm="max"), rows)
    scales = _find(weight[live], scheme, rows[:, live])
    assert scales.pre is not None
    factor = np.full(len(weight), np.median(scales.pre), np.float32)
    factor[live] = scales.pre
    return replace(scales, pre=factor, amax=np.maximum(scales.amax, np.abs(weight / factor[:, None]).max(axis=0)))


def _find(weight: np.ndarray, scheme: Scheme, rows_seen: np.ndarray) -> MatrixScales:
    """The library's answer on W [in, out] and rows [N, in] of its input."""
    format = scheme.format
    module = nn.Sequential(nn.Linear(*weight.shape, bias=False))
    module[0].weight.data = torch.from_numpy(np.ascontiguousarray(weight.T, np.float32))
    rows = torch.from_numpy(np.array(rows_seen, np.float32))
    linear: Any = _quantize(module, _config(scheme), rows)[0]
    pre = getattr(linear.input_quantizer, "pre_quant_scale", None)
    amax = linear.weight_quantizer.amax.detach().float().numpy()
    input_amax = float(linear.input_quantizer.amax.float()) if format.static_input else None
    factor = None if pre is None else pre.detach().float().numpy()
    return MatrixScales(factor, _by_scale(amax, format, *weight.shape), input_amax)


def _rows(scheme: Scheme, statistics: InputStatistics) -> np.ndarray:
    """What the library is shown: maxima alone where they decide, else the sampled rows."""
    if scheme.algorithm in ("max", "smoothquant"):
        return statistics.amax[None]
    return statistics.values["rows"]


def _config(scheme: Scheme) -> dict[str, Any]:
    format = scheme.format
    bits: Any = {"int8": 8, "int4": 4, "fp8": (4, 3)}[format.weights]
    weight: dict[str, Any] = {"num_bits": bits}
    if format.group:
        weight["block_sizes"] = {-1: format.group, "type": "static"}
    else:
        weight["axis"] = None if format.weights == "fp8" else 0
    quantizers = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": weight}]
    if format.static_input or scheme.algorithm == "smoothquant":  # which looks for a rounded input
        quantizers.append({"quantizer_name": "*input_quantizer", "cfg": {"num_bits": bits, "axis": None}})
    algorithm: Any = {"method": scheme.algorithm}
    if scheme.algorithm == "smoothquant":
        algorithm["alpha"] = SMOOTH_ALPHA
    elif scheme.algorithm.startswith("awq"):
        algorithm["alpha_step"] = AWQ_STEP
        algorithm |= CLIP if scheme.algorithm == "awq_full" else {}
    return {"quant_cfg": quantizers, "algorithm": "max" if scheme.algorithm == "max" else algorithm}


def _quantize(module: nn.Sequential, config: dict[str, Any], rows: torch.Tensor) -> nn.Sequential:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        warnings.simplefilter("ignore")
        try:
            import modelopt.torch.quantization as quantization
        except ImportError as error:
            raise MissingComponentError("nvidia-modelopt", needed_for="quantized presets", extra="quantize") from error
        with torch.enable_grad():
            return quantization.quantize(module, config, lambda model: model(rows))


def _by_scale(amax: np.ndarray, format: MatrixFormat, rows: int, columns: int) -> np.ndarray:
    """The library's maxima ([out, 1], [out * groups, 1] or []) in the shape of our scales."""
    if format.weights == "fp8":
        return amax.reshape(())
    return amax.reshape(columns, rows // format.group).T.copy() if format.group else amax.reshape(columns)
