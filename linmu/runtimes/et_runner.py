"""ExecuTorch: the explicit-state methods of a program; the caller owns the state.

ExecuTorch's Python binding passes torch tensors, so this backend needs torch beside executorch. On a phone its C++
runtime runs the same file (docs/android.md, docs/ios.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linmu.errors import BundleError, InputError, MissingComponentError
from linmu.formats.bundle import Bundle
from linmu.formats.pte_file import check_program_file
from linmu.runtimes.base import PromptPiece, VisionFeatures
from linmu.runtimes.prompt import piece_tokens
from linmu.runtimes.shape_ranges import largest_sizes, recorded_ranges
from linmu.runtimes.torch_state import TorchState
from linmu.specs import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

# ExecuTorch's numbers of element types (its ScalarType)
SCALAR_TYPES = {0: "uint8", 1: "int8", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 11: "bool"}


XNNPACK = "xnnpack"  # in every build of ExecuTorch
REGISTERED = {"coreml": "CoreMLBackend", "vulkan": "VulkanBackend"}
DEVICES = {"coreml": "Apple's systems", "vulkan": "Android with a Vulkan driver"}


class EtRunner:
    """A program's methods; see linmu.runtimes.base.Runner. A method is loaded when it is first used."""

    backend = "executorch"

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.bundle, self.state_specs = bundle, bundle.manifest.state
        if threads is not None:
            set_threads(threads)
        self._methods: dict[str, Any] = {}
        self._program: Any = open_program(self._file())
        for name in bundle.manifest.graphs:
            check_method(self._program, name, bundle.manifest.graphs[name], self._most(name))

    def __enter__(self) -> Self:
        """The runner itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free methods and program."""
        self._methods.clear()
        self._program = None

    @property
    def max_piece_tokens(self) -> int | None:
        """What the program was planned for; a span that stays whole may be longer."""
        return piece_tokens(self.bundle.manifest)

    def new_state(self) -> TorchState:
        """A zero state for one sequence."""
        return TorchState(self.state_specs)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Token embeddings: [S] int64 -> [S, D] float32."""
        ids = np.asarray(input_ids, np.int64)
        most = self._most("token_embedding").get("tokens", len(ids))
        parts = [self.run("token_embedding", {"input_ids": ids[None, i : i + most]}) for i in range(0, len(ids), most)]
        width = self.bundle.manifest.model.hidden_size  # what stands behind it is for the stock runners
        rows = [part["inputs_embeds"].numpy()[0, :, :width] for part in parts]
        return np.concatenate(rows) if rows else np.zeros((0, width), np.float32)

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The vision method on the tiles of one call, one after the other; raises BundleError without one."""
        tiles = [self.run("vision", {"pixel_values": tile[None]}) for tile in call["pixel_values"]]
        embeddings = np.concatenate([tile["embeddings"].numpy() for tile in tiles])
        return VisionFeatures(embeddings.reshape(-1, embeddings.shape[-1]))

    def prefill(self, piece: PromptPiece, state: TorchState) -> np.ndarray:
        """Run a piece of a prompt, updating the state -> logits [V] float32 of its last token.

        Raises InputError for a piece that is longer than the method takes.
        """
        feeds = {"inputs_embeds": piece.inputs_embeds, "position_ids": piece.position_ids, **piece.layout}
        return self._advance("prefill", feeds, piece.past_length, state)

    def step(self, token: int, position: int, past_length: int, state: TorchState) -> np.ndarray:
        """One decode step -> logits [V] float32."""
        feeds = {"input_ids": np.array([[token]], np.int64), "position_ids": np.array([[position]], np.int64)}
        return self._advance("step", feeds, past_length, state)

    def run(self, name: str, feeds: Mapping[str, Any], states: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A method on arrays by input name (and states as tensors) -> tensors by output name."""
        import torch

        spec = self.bundle.manifest.graphs.get(name)
        if spec is None:
            raise BundleError(f"the bundle has no {name} method", got=", ".join(self.bundle.manifest.graphs))
        arrays = {key: np.ascontiguousarray(value) for key, value in feeds.items()}
        _check_sizes(name, spec, arrays, self._most(name))
        tensors = {**(states or {}), **{key: torch.from_numpy(value) for key, value in arrays.items()}}
        outputs = self._execute(name, [tensors[item.name] for item in spec.inputs])
        return {item.name: value for item, value in zip(spec.outputs, outputs, strict=True)}

    def _execute(self, name: str, arguments: list[Any]) -> Sequence[Any]:
        """A method on tensors in its order."""
        outputs: Sequence[Any] = self._method(name).execute(arguments)
        return outputs

    def _advance(self, name: str, feeds: dict[str, np.ndarray], past_length: int, state: TorchState) -> np.ndarray:
        if any(spec.name == "past_length" for spec in self.bundle.manifest.graphs[name].inputs):
            feeds["past_length"] = np.array([past_length], np.int64)
        outputs = self.run(name, feeds, state.tensors)
        state.advance(outputs)
        logits: np.ndarray = outputs["logits"].numpy()[0, 0]
        return logits

    def _method(self, name: str) -> Any:
        if name not in self._methods:
            path = self._file()
            with muted():
                try:
                    self._methods[name] = self._program.load_method(name)
                except RuntimeError as error:
                    raise BundleError(f"{path}: method {name} cannot be loaded", got=_first_line(error)) from error
        return self._methods[name]

    def _file(self) -> Path:
        return self.bundle.folder / next(iter(self.bundle.manifest.graphs.values())).file

    def _most(self, name: str) -> dict[str, int]:
        return largest_sizes(recorded_ranges(self.bundle.manifest, name))


def set_threads(count: int) -> None:
    """Let ExecuTorch compute with so many threads, in the whole process; no method may be running."""
    import torch  # noqa: F401  # first: ExecuTorch's library needs it in the process

    with muted():
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        _unsafe_reset_threadpool(count)


def open_program(path: Path) -> Any:
    """Load a program; raises BundleError in one line for a file that is none, is cut short or is damaged."""
    check_program_file(path)
    import torch  # noqa: F401  # first: ExecuTorch's library needs it in the process

    with muted():
        from executorch.runtime import Runtime, Verification

        try:
            return Runtime.get().load_program(path, verification=Verification.InternalConsistency)
        except RuntimeError as error:
            raise BundleError(f"{path} cannot be loaded", got=_first_line(error), fix="export it again") from error


def check_method(program: Any, name: str, spec: GraphSpec, most: Mapping[str, int]) -> None:
    """Hold a method's inputs and outputs against the manifest; raises BundleError naming the first difference.

    A program knows no names: order, types and sizes must agree, dynamic dimensions with their largest size.
    """
    if name not in program.method_names:
        known = ", ".join(sorted(program.method_names))
        raise BundleError(f"{spec.file} has no method {name!r}", got=known, fix="export the bundle again")
    meta = program.metadata(name)
    sides = (
        ("input", spec.inputs, meta.num_inputs(), meta.input_tensor_meta),
        ("output", spec.outputs, meta.num_outputs(), meta.output_tensor_meta),
    )
    for side, wanted, count, tensor in sides:
        if count != len(wanted):
            raise BundleError(f"{spec.file}: {side}s of {name}", got=count, expected=len(wanted), fix="export again")
        for place, item in enumerate(wanted):
            shape = [most.get(dim, dim) if isinstance(dim, str) else dim for dim in item.shape]
            info = tensor(place)
            sizes, dtype = list(info.sizes()), SCALAR_TYPES.get(info.dtype(), str(info.dtype()))
            if dtype != item.dtype or sizes != shape:
                raise BundleError(
                    f"{spec.file}: {side} {item.name!r} of {name}",
                    got=f"{dtype}{sizes}",
                    expected=f"{item.dtype}{shape}",
                    fix="export the bundle again",
                )


def _check_sizes(name: str, spec: GraphSpec, arrays: Mapping[str, np.ndarray], most: Mapping[str, int]) -> None:
    for item in spec.inputs:
        if item.name in arrays:
            _check_size(name, item, arrays[item.name], most)


def _check_size(name: str, spec: TensorSpec, array: np.ndarray, most: Mapping[str, int]) -> None:
    for dim, size in zip(spec.shape, array.shape, strict=True):
        if isinstance(dim, str) and size > most.get(dim, size):
            raise InputError(
                f"this prompt needs {dim} = {size} in method {name}",
                got=size,
                expected=f"at most {most[dim]}",
                fix="smaller pictures or shorter clips",
            )
        if isinstance(dim, int) and size != dim:
            raise InputError(f"{spec.name} of method {name}", got=list(array.shape), expected=list(spec.shape))


@contextmanager
def muted(*streams: int) -> Iterator[None]:
    """Keep what ExecuTorch's C++ code prints (facts of the CPU, a failure's details) off `streams` (default: 2).

    Its binding writes some of it through Python's streams and some to the file descriptors.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    kept = {stream: os.dup(stream) for stream in streams or (2,)}
    for stream in kept:
        os.dup2(nowhere, stream)
    try:
        with ExitStack() as stack:
            for stream in kept:
                stack.enter_context((redirect_stdout if stream == 1 else redirect_stderr)(StringIO()))
            yield
    finally:
        for stream, own in kept.items():
            os.dup2(own, stream)
            os.close(own)
        os.close(nowhere)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def unusable(bundle: Bundle) -> str | None:
    """Why the ExecuTorch that is installed cannot run a bundle's program, or None."""
    delegate = bundle.manifest.precision.delegate or XNNPACK
    if delegate == XNNPACK:
        return None
    import torch  # noqa: F401  # first: ExecuTorch's library needs it in the process

    with muted():
        from executorch.runtime import Runtime

        names = Runtime.get().backend_registry.registered_backend_names
    if REGISTERED.get(delegate) in names:
        return None
    return f"its program is for {delegate}, which ExecuTorch has not here, but on {DEVICES.get(delegate, 'phones')}"


def open_et(bundle: Bundle, threads: int | None) -> EtRunner:
    """Open the ExecuTorch runner; raises MissingComponentError where the program's delegate is not in ExecuTorch."""
    if (reason := unusable(bundle)) is not None:
        raise MissingComponentError(
            f"the program's delegate: {reason}",
            needed_for="backend executorch",
            fix="run it on the phone, or export it with --delegate xnnpack",
        )
    return EtRunner(bundle, threads)
