"""Whether this ONNX Runtime has the recurrent operators that fused graphs of target onnx use (domain com.microsoft)."""

from __future__ import annotations

from importlib import import_module

KERNELS = ("LinearAttention", "CausalConvWithState")
REQUIREMENT = "onnxruntime>=1.31"  # has them; its wheels need Python 3.11


def missing_kernels() -> list[str]:
    """Those of KERNELS that are not there.

    Raises ImportError, OSError or AttributeError where they cannot be listed.
    """
    state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    known = {(kernel.domain, kernel.op_name) for kernel in state.get_all_opkernel_def()}
    return [kernel for kernel in KERNELS if ("com.microsoft", kernel) not in known]
