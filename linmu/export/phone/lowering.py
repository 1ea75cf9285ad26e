"""Methods to one ExecuTorch program: capture, a delegate, and how many multiply-accumulates the delegate took."""

from __future__ import annotations

import logging
import operator
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import fx

from linmu.export.phone.delegates import XNNPACK, partitioner
from linmu.export.phone.methods import Method, example_inputs
from linmu.export.phone.ops import PhoneOps
from linmu.runtimes.et_runner import muted

LEAST_SHARE = 0.95  # of a method's multiply-accumulates; below, an export says so and fails
EXAMPLE_TOKENS = 64  # lengths that methods are captured with, and that their multiply-accumulates are counted at


@dataclass(frozen=True)
class MethodReport:
    """One method: multiply-accumulates at its example lengths, those delegated, calls of the delegate, kernels left."""

    macs: int
    delegated_macs: int
    delegates: int
    left: dict[str, int] = field(default_factory=dict)
    left_macs: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of the multiply-accumulates that the delegate computes."""
        return self.delegated_macs / self.macs if self.macs else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**vars(self), "share": self.share}


def lower(
    methods: Mapping[str, Method],
    most: Mapping[str, Mapping[str, int]],
    constants: Mapping[str, Any] | None = None,
    delegate: str = XNNPACK,
) -> tuple[Any, dict[str, MethodReport]]:
    """Lower methods for a delegate -> (ExecuTorch's program manager, a report of each).

    most: {method: {symbolic dimension: largest size}}; constants: constant methods (metadata) by name.
    """
    with quiet(), muted(), without_provenance():
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

        programs = {name: capture(method, most.get(name, {})) for name, method in methods.items()}
        edge = to_edge_transform_and_lower(
            programs,
            partitioner=[partitioner(delegate)],
            constant_methods=dict(constants or {}),
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
        )
        reports = {name: method_report(edge.exported_program(name).graph_module) for name in methods}
        return edge.to_executorch(ExecutorchBackendConfig()), reports


def capture(method: Method, most: Mapping[str, int]) -> torch.export.ExportedProgram:
    """torch.export of a method, every symbolic dimension from 1 to its largest size."""
    dims = {name: torch.export.Dim(name, min=1, max=size) for name, size in most.items()}
    sizes = {name: max(min(EXAMPLE_TOKENS + place, size), 2) for place, (name, size) in enumerate(most.items())}
    shapes = tuple(
        {axis: dims[dim] for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in method.spec.inputs
    )
    variadic = any(spec.name.startswith("past.") for spec in method.spec.inputs)
    arguments = example_inputs(method.spec, sizes)
    with torch.no_grad():
        method.module(*arguments)  # shows which weights the method reads
        for part in method.module.modules():
            if isinstance(ops := getattr(part, "ops", None), PhoneOps):
                ops.weights.drop_unused()
        return torch.export.export(
            method.module, arguments, strict=False, dynamic_shapes=(shapes,) if variadic else shapes
        )


def method_report(module: fx.GraphModule) -> MethodReport:
    """What the delegate took of a lowered method, and what it left to portable kernels."""
    delegated, delegates = Counter[str](), 0
    left, left_macs = Counter[str](), Counter[str]()
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if (name := _name(node)) == "executorch_call_delegate":
            delegates += 1
            inner = getattr(module, node.args[0].target).original_module.graph_module
            delegated.update(_macs_by_name(inner))
        else:
            left[name] += 1
            left_macs[name] += macs(node)
    left.pop("sym_size", None)
    total = sum(delegated.values()) + sum(left_macs.values())
    heavy = {name: count for name, count in left_macs.items() if count}
    return MethodReport(total, sum(delegated.values()), delegates, dict(left.most_common()), heavy)


def macs(node: fx.Node) -> int:
    """Multiply-accumulates of a matrix product or convolution at the captured sizes; 0 for anything else."""
    name = _name(node)
    if name in ("linear", "mm", "bmm", "matmul"):
        return prod(_shape(node)) * _shape(node.args[0])[-1]
    if name == "addmm":
        return prod(_shape(node)) * _shape(node.args[1])[-1]
    if name == "convolution":
        return prod(_shape(node)) * prod(_shape(node.args[1])[1:])
    return 0


def _macs_by_name(module: fx.GraphModule) -> Counter[str]:
    counts = Counter[str]()
    for node in module.graph.nodes:
        if node.op == "call_function":
            counts[_name(node)] += macs(node)
    return counts


def _name(node: fx.Node) -> str:
    target = node.target
    full = getattr(target, "__name__", str(target))
    parts = full.split(".")
    return parts[1] if parts[0] in ("aten", "dim_order_ops") and len(parts) > 1 else parts[0]


def _shape(node: Any) -> list[int]:
    return [dim if isinstance(dim, int) else int(dim.node.hint) for dim in node.meta["val"].shape]


@contextmanager
def without_provenance() -> Iterator[None]:
    """Let torch's graph passes forget which node a node was made from.

    They copy that whole history for every node of every pass, a fifth of the time of a lowering, and nothing reads it.
    """
    from torch.fx import traceback

    def forget(self: Any, node: Any, pass_name: str = "", action: Any = None) -> None:
        original(self, None, pass_name, action)

    original = traceback.NodeSource.__init__
    traceback.NodeSource.__init__ = forget
    try:
        yield
    finally:
        traceback.NodeSource.__init__ = original


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' notices (optional kernels that are not there, deprecations of their own) off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch", "torchao", "executorch", "coremltools")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
