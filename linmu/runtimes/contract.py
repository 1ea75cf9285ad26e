"""What the runners ask of a manifest's graphs before they make a buffer of any size in it (docs/bundle.md)."""

from __future__ import annotations

from linmu.errors import BundleError
from linmu.formats.manifest import Manifest
from linmu.formats.manifest_object import MANIFEST_NAME
from linmu.formats.state_precision import STATE_PRECISIONS
from linmu.specs import GraphSpec

NUMPY = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")  # numpy has no bfloat16
NEEDED = {  # inputs and their ranks; position_ids has one axis more with M-RoPE
    "prefill": {"inputs_embeds": (3,), "position_ids": (2, 3)},
    "step": {"input_ids": (2,), "position_ids": (2, 3)},
}


def check_contract(manifest: Manifest) -> None:
    """Raise BundleError unless prefill and step take what runners feed and give logits of the vocabulary."""
    for name, needed in NEEDED.items():
        graph = manifest.graphs.get(name)
        if graph is None:
            raise _bad("graphs", ", ".join(manifest.graphs), f"a graph {name!r}")
        ranks = {spec.name: len(spec.shape) for spec in graph.inputs}
        for key, allowed in needed.items():
            if ranks.get(key) not in allowed:
                raise _bad(f"graphs.{name}", f"{key} of rank {ranks.get(key)}", f"rank {allowed[0]}")
        _check_logits(name, graph, manifest.model.vocab_size)
    for graph in manifest.graphs.values():
        for spec in (*graph.inputs, *graph.outputs):
            if spec.dtype not in NUMPY:
                raise _bad(f"{graph.file}: {spec.name}", spec.dtype, "a type that numpy has")
    for state in manifest.state:
        if state.dtype not in STATE_PRECISIONS.values():
            raise _bad(f"state {state.name}", state.dtype, " or ".join(STATE_PRECISIONS.values()))
        fixed = all(isinstance(dim, int) for dim in state.shape[1:])
        if not fixed or (isinstance(state.shape[0], int) and state.shape[0] != 1):
            raise _bad(f"state {state.name}", list(state.shape), "one sequence of fixed sizes")


def _check_logits(name: str, graph: GraphSpec, vocab: int) -> None:
    logits = {spec.name: spec for spec in graph.outputs}.get("logits")
    if logits is None or logits.dtype != "float32" or len(logits.shape) != 3 or logits.shape[-1] != vocab:
        raise _bad(f"graphs.{name}", logits, f"logits float32 of {vocab} tokens")


def _bad(where: str, got: object, expected: object) -> BundleError:
    return BundleError(f"{MANIFEST_NAME}: {where}", got=got, expected=expected, fix="export the bundle again")
