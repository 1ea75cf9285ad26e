"""The CUDA runtime through cuda-python: the only module that calls it; every error code is checked.

Addresses are integers; device memory is never touched from Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from linmu.errors import DeviceError, MissingComponentError

DEVICE = 0
OUT_OF_MEMORY = "cudaErrorMemoryAllocation"


@dataclass(frozen=True)
class GpuFacts:
    """The GPU that is used: name, compute capability (major, minor), whether it shares the host's memory, bytes."""

    name: str
    compute_capability: tuple[int, int]
    integrated: bool
    total_bytes: int
    free_bytes: int

    @property
    def capability_text(self) -> str:
        """As NVIDIA writes it, for example 8.7."""
        return ".".join(map(str, self.compute_capability))


def runtime(needed_for: str = "backend tensorrt") -> Any:
    """cuda-python's runtime module; raises MissingComponentError when it is not installed."""
    try:
        return import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise MissingComponentError("cuda-python", needed_for=needed_for, extra="jetson") from error


def gpu_facts(needed_for: str = "backend tensorrt") -> GpuFacts:
    """The first GPU; raises MissingComponentError when cuda-python, the driver or a GPU is missing."""
    rt = runtime(needed_for)
    code, count = rt.cudaGetDeviceCount()
    if _failed(rt, code) or not count:
        reason = _describe(rt, code) if _failed(rt, code) else "no device"
        raise MissingComponentError(
            f"an NVIDIA GPU with its driver ({reason})",
            needed_for=needed_for,
            fix="run this on the Jetson itself (in a container: with --runtime nvidia)",
        )
    call(rt, "cudaSetDevice", DEVICE)
    properties = call(rt, "cudaGetDeviceProperties", DEVICE)
    free, total = call(rt, "cudaMemGetInfo")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return GpuFacts(
        name.split("\0")[0], (properties.major, properties.minor), bool(properties.integrated), int(total), int(free)
    )


def call(rt: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its results without the code; raises DeviceError on any error."""
    code, *results = getattr(rt, name)(*arguments)
    if _failed(rt, code):
        described = _describe(rt, code)
        fix = "free memory on the device or choose a smaller model" if OUT_OF_MEMORY in described else None
        raise DeviceError(f"{name} failed", got=described, fix=fix)
    return results[0] if len(results) == 1 else tuple(results)


def _failed(rt: Any, code: Any) -> bool:
    return code != rt.cudaError_t.cudaSuccess


def _describe(rt: Any, code: Any) -> str:
    name, text = rt.cudaGetErrorName(code)[1], rt.cudaGetErrorString(code)[1]
    return f"{_text(name)} ({_text(text)})"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Cuda:
    """One stream, and the memory that was taken for it; `close` gives everything back."""

    def __init__(self) -> None:
        self.rt = runtime()
        self._undo: list[Callable[[], Any]] = []
        call(self.rt, "cudaSetDevice", DEVICE)
        self.stream = call(self.rt, "cudaStreamCreateWithFlags", self.rt.cudaStreamNonBlocking)
        self._undo.append(lambda: call(self.rt, "cudaStreamDestroy", self.stream))

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return int(self.stream)

    def device_memory(self, nbytes: int) -> int:
        """The address of `nbytes` of device memory, freed by `close`."""
        address = int(call(self.rt, "cudaMalloc", nbytes))
        self._undo.append(lambda: call(self.rt, "cudaFree", address))
        return address

    def pinned_memory(self, nbytes: int) -> tuple[np.ndarray, int]:
        """Page-locked host memory as a [nbytes] uint8 array, and its address; freed by `close`."""
        address = int(call(self.rt, "cudaMallocHost", nbytes))
        self._undo.append(lambda: call(self.rt, "cudaFreeHost", address))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)), address

    def to_device(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy from the host."""
        self._copy(target, source, nbytes, "cudaMemcpyHostToDevice")

    def to_host(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy to the host."""
        self._copy(target, source, nbytes, "cudaMemcpyDeviceToHost")

    def on_device(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy inside device memory."""
        self._copy(target, source, nbytes, "cudaMemcpyDeviceToDevice")

    def clear(self, target: int, nbytes: int) -> None:
        """Queue zeros."""
        call(self.rt, "cudaMemsetAsync", target, 0, nbytes, self.stream)

    def wait(self) -> None:
        """Until all that was queued is done."""
        call(self.rt, "cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` queues, as an executable graph; it is not run."""
        call(
            self.rt,
            "cudaStreamBeginCapture",
            self.stream,
            self.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        try:
            work()
        except BaseException:
            self.rt.cudaStreamEndCapture(self.stream)  # whatever it says: the first error is the one to tell
            self.rt.cudaGetLastError()
            raise
        graph = call(self.rt, "cudaStreamEndCapture", self.stream)
        try:
            executable = call(self.rt, "cudaGraphInstantiate", graph, 0)
        finally:
            call(self.rt, "cudaGraphDestroy", graph)
        self._undo.append(lambda: call(self.rt, "cudaGraphExecDestroy", executable))
        return executable

    def launch(self, executable: Any) -> None:
        """Queue a captured graph."""
        call(self.rt, "cudaGraphLaunch", executable, self.stream)

    def close(self) -> None:
        """Give everything back, last taken first."""
        while self._undo:
            self._undo.pop()()

    def _copy(self, target: int, source: int, nbytes: int, kind: str) -> None:
        call(self.rt, "cudaMemcpyAsync", target, source, nbytes, getattr(self.rt.cudaMemcpyKind, kind), self.stream)
