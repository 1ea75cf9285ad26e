"""A bundle's graphs with the inputs of their rounded matrix products as further outputs: what verification follows.

The values are exposed in front of QuantizeLinear, not behind it: ONNX Runtime makes integer products of
QuantizeLinear, DequantizeLinear and MatMul only where nobody else reads the codes, and the kernels that are checked
should be those that run. The codes follow from a value: round(x / scale), half to even, saturated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FilePath

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from linmu.errors import BundleError
from linmu.export.onnx.quantized_ops import INT8_INPUTS
from linmu.formats.bundle import Bundle
from linmu.formats.matrix_format import part
from linmu.proof.paths import FILES, SESSION, Path, RoundedInputs
from linmu.runtimes.ort_runner import EXPOSED, OrtRunner
from linmu.step.form import DecoderForm
from linmu.verification.float_inputs import FOLDER_OPTION
from linmu.verification.graph_files import GraphFiles

SCALE, CODES = part("", "input_scale"), part("", "q")


class ExposedRunner(OrtRunner):
    """An OrtRunner whose decoder calls leave the inputs of rounded products in `rounded_inputs`.

    Raises BundleError for a graph that rounds the input of a matrix twice, or with another matrix's scale.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.rounded_inputs: RoundedInputs = {}
        super().__init__(bundle, threads)

    def _source(self, path: FilePath, options: ort.SessionOptions) -> str | bytes:
        if path.stem not in ("prefill", "step"):
            return super()._source(path, options)
        options.add_session_config_entry(FOLDER_OPTION, str(path.parent.resolve()))
        model = onnx.load(path, load_external_data=False)
        expose_inputs(model)
        return model.SerializeToString()

    def run_bound(self, name: str, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
        """Run graph `name` on bound buffers and keep what it exposes."""
        names = self._exposed(name)
        for output in names:
            binding.bind_output(output)
        super().run_bound(name, binding, options)
        values = binding.get_outputs()[-len(names) :] if names else []
        self._keep(names, [value.numpy() for value in values])

    def run_graph(self, name: str, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run graph `name` on arrays and keep what it exposes."""
        names = self._exposed(name)
        values = super().run_graph(name, [*outputs, *names], feeds)
        self._keep(names, values[len(outputs) :])
        return values[: len(outputs)]

    def _exposed(self, name: str) -> list[str]:
        return [value.name for value in self.session(name).get_outputs() if value.name.startswith(EXPOSED)]

    def _keep(self, names: list[str], values: list[np.ndarray]) -> None:
        matrices = [name.removeprefix(EXPOSED) for name in names]
        self.rounded_inputs = dict(zip(matrices, values, strict=True))


def expose_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Add an output `exposed/<matrix>` for every input of the main graph that is rounded; their matrices.

    These are inputs of QuantizeLinear, and of MatMulNBits where that rounds by itself.

    What stands inside a branch cannot be an output. These are products of windows, whose inputs are tokens of an input
    that is exposed. Raises BundleError as ExposedRunner says.
    """
    graph, matrices = model.graph, list[str]()
    for node in list(graph.node):
        if node.op_type == "MatMulNBits" and _level(node) == INT8_INPUTS:
            suffix = CODES
        elif node.op_type == "QuantizeLinear":
            suffix = SCALE
        else:
            continue
        matrix = node.input[1].removesuffix(suffix)
        if not node.input[1].endswith(suffix) or matrix in matrices:
            raise BundleError(f"the constant of {node.name}", got=node.input[1], expected="one of a matrix, used once")
        matrices.append(matrix)
        graph.node.append(helper.make_node("Identity", [node.input[0]], [EXPOSED + matrix]))
        graph.output.append(helper.make_tensor_value_info(EXPOSED + matrix, TensorProto.FLOAT, None))
    return tuple(matrices)


@contextmanager
def exposed_graphs(bundle: Bundle, runner: OrtRunner, form: DecoderForm) -> Iterator[list[Path]]:
    """The paths of an ONNX Runtime runner: the graph files one by one, and a session's (linmu.runtimes.backends)."""
    with ExposedRunner(bundle, runner.threads) as shown:
        files = Path(FILES, GraphFiles(shown), lambda: shown.rounded_inputs, GraphFiles(runner))
        yield [files, Path(SESSION, shown, lambda: shown.rounded_inputs, runner)]


def _level(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "accuracy_level"), 0)
