"""A hand-made bundle without real graphs: what bundle, state, inspect and command line tests open."""

from __future__ import annotations

from pathlib import Path

from linmu.config import MMateConfig
from linmu.formats.bundle import write_manifest
from linmu.formats.manifest import Manifest, ModelFacts, state_bytes
from linmu.formats.precision import Precision
from linmu.layout.rules import PromptRules
from linmu.specs import GraphSpec, StateSpec, TensorSpec

# Pairwise distinct sizes: hidden 30, heads 6, kv heads 2, head size 5, channels (6 + 2 * 2) * 5 = 50, taps - 1 = 3.
RECURRENT = StateSpec(
    "past.0.recurrent", "present.0.recurrent", "float32", ("batch", 6, 5, 7), ("batch", "heads", "key_dim", "value_dim")
)
CONV_LAST = StateSpec("past.0.conv", "present.0.conv", "float32", ("batch", 3, 50), ("batch", "taps", "channels"))
CONV_FIRST = StateSpec("past.0.conv", "present.0.conv", "float32", ("batch", 50, 3), ("batch", "channels", "taps"))
STATES = (CONV_LAST, RECURRENT)


def step_graph(states: tuple[StateSpec, ...] = STATES) -> GraphSpec:
    past = tuple(TensorSpec(spec.name, spec.dtype, spec.shape) for spec in states)
    present = tuple(TensorSpec(spec.output, spec.dtype, spec.shape) for spec in states)
    ids = TensorSpec("input_ids", "int64", ("batch", 1))
    logits = TensorSpec("logits", "float32", ("batch", 1, 11))
    return GraphSpec("step.onnx", (ids, *past), (logits, *present))


def tiny_manifest(states: tuple[StateSpec, ...] = STATES, **changes: object) -> Manifest:
    model = ModelFacts(
        "tiny", "llama", 30, 1, 6, 2, 5, 11, 1234, MMateConfig(), PromptRules("llama"), intermediate_size=64
    )
    values = {
        "created_with": {"linmu": "0.1.0"},
        "model": model,
        "target": "onnx",
        "backends": ("onnxruntime",),
        "precision": Precision(),
        "graphs": {"step": step_graph(states)},
        "state": states,
        "state_bytes": state_bytes(states),
        "golden": {"golden/step.safetensors": "one step"},
    }
    return Manifest(**{**values, **changes})


def tiny_bundle(folder: Path, **changes: object) -> Path:
    (folder / "golden").mkdir(parents=True)
    (folder / "step.onnx").write_bytes(b"graph")
    (folder / "weights.data").write_bytes(bytes(range(200)))
    (folder / "golden" / "step.safetensors").write_bytes(b"golden")
    write_manifest(folder, tiny_manifest(**changes))
    return folder
