"""Half precision products of a graph, each judged by itself: inputs and result against exact arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from linmu.step.half_ops import half
from linmu.verification.float_inputs import FOLDER_OPTION

UNIT = 2.0**-24  # half the distance of neighbouring float32 numbers, of their size


def _rounds(made: dict[str, onnx.NodeProto], value: str) -> bool:
    """Whether a value is a float16 number as float32: a Cast of a Cast to float16, or of what is stored so."""
    cast = made.get(value)
    if cast is None or cast.op_type != "Cast" or cast.attribute[0].i != onnx.TensorProto.FLOAT:
        return False
    source = made.get(cast.input[0])
    return source is None or (source.op_type == "Cast" and source.attribute[0].i == onnx.TensorProto.FLOAT16)


def expose_half_products(path: Path) -> tuple[bytes, list[tuple[str, str, str, bool]]]:
    """A graph with every half product's factors and rounded result as outputs -> (model, names, second transposed).

    A half product is a MatMul or Gemm whose result is rounded to float16; external data stays where it is.
    """
    model = onnx.load(path, load_external_data=False)
    made = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = []
    for node in list(model.graph.node):
        if node.op_type not in ("MatMul", "Gemm") or not all(_rounds(made, value) for value in node.input):
            continue
        (narrow,) = readers[node.output[0]]
        (result,) = [reader.output[0] for reader in readers[narrow.output[0]]]
        assert _rounds(made, result)
        found.append((*node.input, result, node.op_type == "Gemm"))
    for value in {name for *names, _ in found for name in names} - {output.name for output in model.graph.output}:
        model.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    return model.SerializeToString(), found


def run_exposed(path: Path, feeds: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[list[np.ndarray]]]:
    """Run a graph with its half products exposed -> (all outputs by name, [first, second, result] of each product)."""
    model, products = expose_half_products(path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(FOLDER_OPTION, str(path.parent.resolve()))
    session = ort.InferenceSession(model, options)
    values = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
    return values, [[values[a], values[b].T if turn else values[b], values[y]] for a, b, y, turn in products]


def assert_half_product(first: np.ndarray, second: np.ndarray, result: np.ndarray) -> None:
    """`result` is the float16 number of a float32 sum of products, whatever the order of the sum.

    Rounding is monotone: a sum that is off by at most K units of its terms' magnitudes, K being their number, lies
    between the rounded ends of that interval.
    """
    for factor in (first, second):
        np.testing.assert_array_equal(factor, factor.astype(np.float16))
    wide = first.astype(np.float64), second.astype(np.float64)
    exact, room = wide[0] @ wide[1], first.shape[-1] * UNIT * (np.abs(wide[0]) @ np.abs(wide[1]))
    assert ((exact - room).astype(np.float16) <= result).all() and (result <= (exact + room).astype(np.float16)).all()


def shapes(products) -> Counter[tuple[tuple[int, ...], ...]]:
    """How often each pair of factor shapes is multiplied; leading axes of length 1 and empty products left out."""
    return Counter((_trimmed(a.shape), _trimmed(b.shape)) for a, b, _ in products if a.size)


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _trimmed(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape


def recorded(product: Callable[..., torch.Tensor], found: list[list[np.ndarray]]) -> Callable[..., torch.Tensor]:
    """A half product that also leaves its factors and result in `found`; its last two arguments are the factors."""

    def recording(*given: torch.Tensor) -> torch.Tensor:
        result = product(*given)
        found.append([*(half(factor).numpy() for factor in given[-2:]), result.numpy()])
        return result

    return recording
