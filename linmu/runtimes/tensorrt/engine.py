"""An engine that is open: deserialised, held against the manifest, and called with pinned buffers of its own.

Everything here needs a GPU; what can be decided without one is in plan.py, fit.py and shape_ranges.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import BundleError, DeviceError
from linmu.runtimes.shape_ranges import Ranges, largest
from linmu.runtimes.tensorrt.cuda import Cuda
from linmu.runtimes.tensorrt.fit import check_ranges
from linmu.runtimes.tensorrt.plan import Arena, bind_dimensions, check_engine, plan_arena
from linmu.runtimes.tensorrt.toolkit import Toolkit
from linmu.specs import GraphSpec, TensorSpec

# TensorRT's DataType by name -> numpy's.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def is_state(name: str) -> bool:
    """Whether a tensor belongs to the recurrent state."""
    return name.startswith(("past.", "present."))


def without_states(spec: GraphSpec) -> GraphSpec:
    """A graph's inputs and outputs that are not state."""
    inputs, outputs = (tuple(item for item in side if not is_state(item.name)) for side in (spec.inputs, spec.outputs))
    return GraphSpec(spec.file, inputs, outputs)


class OpenEngine:
    """One deserialised engine and its buffers for everything but states."""

    def __init__(self, toolkit: Toolkit, cuda: Cuda, name: str, path: Path, spec: GraphSpec, ranges: Ranges):
        self.toolkit, self.cuda, self.name, self.ranges = toolkit, cuda, name, ranges
        toolkit.errors.clear()
        self._runtime = toolkit.trt.Runtime(toolkit.logger)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"cannot read {path}", got=error.strerror, fix="linmu build") from error
        self.engine = self._runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise BundleError(f"{path} cannot be opened", got=toolkit.last_error(), fix="linmu build --force")
        check_engine(name, spec, ranges, *self._specs())
        self.spec = without_states(spec)
        self._states = {item.name: largest(item.shape, ranges) for item in spec.outputs if is_state(item.name)}
        self.arena: Arena = plan_arena((*self.spec.inputs, *self.spec.outputs), ranges)
        self.device = cuda.device_memory(self.arena.nbytes)
        self.host, self.host_address = cuda.pinned_memory(self.arena.nbytes)

    def context(self) -> Any:
        """A further execution context with all addresses of this engine's own buffers set."""
        context = self.engine.create_execution_context()
        if context is None:
            raise DeviceError(f"no execution context for the {self.name} engine", got=self.toolkit.last_error())
        self.set_addresses(context, {name: self.device + place.offset for name, place in self.arena.places.items()})
        return context

    def largest(self, name: str, axis: int) -> int:
        """The largest size of one axis of a tensor."""
        return self.arena.places[name].shape[axis]

    def set_addresses(self, context: Any, addresses: Mapping[str, int]) -> None:
        """Bind tensors to device addresses."""
        for name, address in addresses.items():
            self._require(context.set_tensor_address(name, address), f"address of {name}")

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Say how large the inputs of the next call are."""
        for name, shape in shapes.items():
            self._require(context.set_input_shape(name, shape), f"shape {list(shape)} of {name}")

    def fill(self, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """Put a call's inputs into the pinned buffers; their shapes, checked against manifest and ranges."""
        shapes = {name: tuple(array.shape) for name, array in feeds.items()}
        check_ranges(self.name, bind_dimensions(self.spec, shapes), self.ranges)
        for name, array in feeds.items():
            self.view(name, shapes[name])[...] = array
        return shapes

    def view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A tensor in the pinned buffers."""
        place = self.arena.places[name]
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(place.dtype).itemsize
        return self.host[place.offset : place.offset + nbytes].view(place.dtype).reshape(shape)

    def queue_inputs(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Queue the copies of filled inputs to the device."""
        for name, shape in shapes.items():
            offset, nbytes = self.arena.places[name].offset, self.view(name, shape).nbytes
            if nbytes:
                self.cuda.to_device(self.device + offset, self.host_address + offset, nbytes)

    def queue_run(self, context: Any) -> None:
        """Queue the engine itself."""
        self._require(context.execute_async_v3(self.cuda.handle), "the run")

    def queue_output(self, name: str, shape: tuple[int, ...]) -> None:
        """Queue the copy of an output to the pinned buffers."""
        offset = self.arena.places[name].offset
        self.cuda.to_host(self.host_address + offset, self.device + offset, self.view(name, shape).nbytes)

    def check_states(self, context: Any) -> None:
        """Hold the shapes of new states, now that all inputs are known, against the room there is for them."""
        if unknown := context.infer_shapes():
            raise DeviceError(f"the {self.name} engine does not know the shape of {unknown[0]}")
        for name, wanted in self._states.items():
            if (shape := tuple(context.get_tensor_shape(name))) != wanted:
                raise BundleError(f"engine {self.name}: output {name!r}", got=list(shape), expected=list(wanted))

    def run(self, context: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One whole call: copies of all outputs but states."""
        shapes = self.fill(feeds)
        self.set_shapes(context, shapes)
        self.check_states(context)
        outputs = {item.name: tuple(context.get_tensor_shape(item.name)) for item in self.spec.outputs}
        self.queue_inputs(shapes)
        self.queue_run(context)
        for name, shape in outputs.items():
            self.queue_output(name, shape)
        self.cuda.wait()
        return {name: self.view(name, shape).copy() for name, shape in outputs.items()}

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise DeviceError(f"the {self.name} engine refused {what}", got=self.toolkit.last_error())

    def _specs(self) -> tuple[list[TensorSpec], list[TensorSpec]]:
        engine, kinds = self.engine, self.toolkit.trt.TensorIOMode
        sides: dict[Any, list[TensorSpec]] = {kinds.INPUT: [], kinds.OUTPUT: []}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = str(engine.get_tensor_dtype(name).name)
            spec = TensorSpec(name, DTYPES.get(dtype, dtype), tuple(engine.get_tensor_shape(name)))
            sides[engine.get_tensor_mode(name)].append(spec)
        return sides[kinds.INPUT], sides[kinds.OUTPUT]
