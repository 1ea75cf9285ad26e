"""What XNNPACK takes of a method: ExecuTorch's partitioner, less what rounds otherwise than torch, plus more slices.

Imports ExecuTorch's compiler, so it is imported where that is needed.
"""

from __future__ import annotations

from typing import Any

import executorch.backends.xnnpack.operators  # noqa: F401  registers the visitors
import torch
from executorch.backends.xnnpack.operators.node_visitor import _node_visitor_dict, register_node_visitor
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.generic_node_configs import SliceCopyConfig, ViewCopyConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

# sines and cosines (of positions, once a call) stay torch's own; and XNNPACK has one GELU, whichever is asked for
EXACT = ("SinConfig", "CosConfig", "GeluConfig")
SLICE = "aten.slice_copy.Tensor"


class Views(ViewCopyConfig):
    """Leaves views of a method's inputs: to XNNPACK a view is a copy, to ExecuTorch the same bytes."""

    def check_constraints(self, node: Any, ep: Any) -> bool:
        """Whether XNNPACK takes a view."""
        return node.args[0].name not in ep.graph_signature.user_inputs and super().check_constraints(node, ep)


class Slices(SliceCopyConfig):
    """Takes slices along one axis of fixed length whatever the lengths of the others, see `SlicesVisitor`."""

    def check_constraints(self, node: Any, ep: Any) -> bool:
        """Whether XNNPACK takes a slice."""
        axis = node.args[1] if len(node.args) > 1 else 0
        lengths = [item.meta["val"].shape[axis] for item in (node.args[0], node)]
        fixed = all(isinstance(length, int) and length > 0 for length in lengths)
        step = node.args[4] if len(node.args) > 4 else 1
        return fixed and step == 1 and self.check_common_constraints(node, ep)


class SlicesVisitor(_node_visitor_dict[SLICE]):
    """Writes slices of tensors whose other axes change: a size of 0 is XNNPACK's word for the whole axis."""

    def define_node(self, node: Any, xnn_graph: Any, vals_to_ids: Any, debug_handle: int) -> None:
        """Append the slice to XNNPACK's graph."""
        super().define_node(node, xnn_graph, vals_to_ids, debug_handle)
        written = xnn_graph.xnodes[-1].xnode_union
        shape = node.meta["val"].shape
        written.sizes = [0 if isinstance(dim, torch.SymInt) else dim for dim in shape]


register_node_visitor(SlicesVisitor)  # in place of its base, whose slices it writes as they were


def partitioner() -> XnnpackPartitioner:
    """XNNPACK's partitioner, in float32 as torch computes and in the presets' rounding."""
    changed = (ViewCopyConfig, SliceCopyConfig)
    configs = [item for item in ALL_PARTITIONER_CONFIGS if item.__name__ not in EXACT and item not in changed]
    return XnnpackPartitioner(configs=[*configs, Views, Slices])
