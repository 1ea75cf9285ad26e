"""The manifest of a bundle: frozen dataclasses <-> manifest.json, read strictly (unknown or missing keys fail)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from math import prod
from typing import Any

from linmu.config import CARRIED_RULES, MMateConfig
from linmu.errors import BundleError
from linmu.formats.manifest_object import MANIFEST_NAME, check_keys, check_names, read_as_manifest, refused
from linmu.formats.precision import Precision
from linmu.formats.state_precision import exact_specs
from linmu.layout.rules import PromptRules
from linmu.specs import CANONICAL_AXES, GraphSpec, StateSpec, TensorSpec, state_kind

FORMAT = "linmu-bundle"
FORMAT_VERSION = 2
OWN_HASH = "manifest_sha256"
DATA_SUFFIX = ".data"  # of files that hold what ONNX graphs refer to
WEIGHT_SUFFIXES = (".onnx", DATA_SUFFIX, ".pte")

DTYPE_BYTES = {
    **dict.fromkeys(("float64", "int64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2"), 1),
}

_STATE_NAME = re.compile(r"past\.(0|[1-9][0-9]{0,5})\.(\w+)")


@dataclass(frozen=True)
class ModelFacts:
    """What the manifest says of the model; `parameters` counts elements, `rope_parameters` is plain JSON.

    `mmate` are the settings of its blocks, `prompt_rules` how its prompts are read (nothing but the family where there
    are no pictures). `weights_hash` names the student's weights, so that a state fits every bundle made of them
    ("" = unknown).
    """

    name: str
    family: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    parameters: int
    mmate: MMateConfig
    prompt_rules: PromptRules
    intermediate_size: int = 0
    weights_hash: str = ""
    rope_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """Hash (hexadecimal sha256) and size in bytes of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """Everything manifest.json holds (format and format_version are constants of this version).

    `state_bytes` is the state of one sequence; `golden` says what each golden file holds; `profiles` hold
    the shape range of every dynamic input, by graph and input, where the target needs them; `graph_weights` the bytes
    that a graph reads of each data file, by graph and file, where a device compiles the graphs;
    `program` says of an ExecuTorch program how many tokens a piece has and what its delegate took of each method.
    """

    created_with: dict[str, str]
    model: ModelFacts
    target: str
    backends: tuple[str, ...]
    precision: Precision
    graphs: dict[str, GraphSpec]
    state: tuple[StateSpec, ...]
    state_bytes: int
    vision: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, str] = field(default_factory=dict)
    profiles: dict[str, Any] = field(default_factory=dict)
    graph_weights: dict[str, dict[str, int]] = field(default_factory=dict)
    program: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in _TOP_OPTIONAL:
            if not plain[name]:
                del plain[name]
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **plain,
            "model": asdict(self.model),
            "precision": self.precision.to_json(),
            "backends": list(self.backends),
            "graphs": {name: graph.to_json() for name, graph in self.graphs.items()},
            "state": [spec.to_json() for spec in self.state],
            "files": {path: asdict(entry) for path, entry in sorted(self.files.items())},
        }
        return {**content, OWN_HASH: own_hash(content)}

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Read `to_json`'s form; raises BundleError on anything unknown, missing, of a wrong type or inconsistent."""
        _check_version(data)
        check_keys(data, _TOP, MANIFEST_NAME, optional=_TOP_OPTIONAL)
        for name in ("created_with", "golden"):
            check_names(list(data[name].values()), name, empty=True)
        manifest = cls(
            **{name: data[name] for name in _PLAIN},
            **{name: data.get(name, {}) for name in _TOP_OPTIONAL},
            model=_model(data["model"]),
            precision=Precision.from_json(data["precision"]),
            backends=tuple(check_names(data["backends"], "backends")),
            graphs={name: _graph(f"graphs.{name}", value) for name, value in data["graphs"].items()},
            state=tuple(_state(f"state[{index}]", value) for index, value in enumerate(data["state"])),
            files={path: _file(f"files.{path}", value) for path, value in data["files"].items()},
        )
        check_state(manifest)
        check_profiles(manifest)
        check_graph_weights(manifest)
        return manifest


_PLAIN = ("created_with", "target", "state_bytes", "vision", "generation", "golden")
_TOP: dict[str, type] = {
    "format": str,
    "format_version": int,
    "created_with": dict,
    "model": dict,
    "target": str,
    "backends": list,
    "precision": dict,
    "graphs": dict,
    "state": list,
    "state_bytes": int,
    "vision": dict,
    "generation": dict,
    "golden": dict,
    "profiles": dict,
    "graph_weights": dict,
    "program": dict,
    "files": dict,
    OWN_HASH: str,
}
_TOP_OPTIONAL = ("profiles", "graph_weights", "program")
_MODEL: dict[str, type] = {
    "name": str,
    "family": str,
    "hidden_size": int,
    "layers": int,
    "heads": int,
    "kv_heads": int,
    "head_dim": int,
    "vocab_size": int,
    "parameters": int,
    "intermediate_size": int,
    "weights_hash": str,
    "mmate": dict,
    "prompt_rules": dict,
    "rope_parameters": dict,
}
_MODEL_OPTIONAL = ("intermediate_size", "weights_hash", "rope_parameters")


def own_hash(content: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 of a manifest's content without its own hash: sorted keys, no spaces, ASCII.

    It shows damage. It says nothing about who made the bundle: whoever changes a file can change it, too.
    """
    plain = {name: value for name, value in content.items() if name != OWN_HASH}
    return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_own_hash(content: Mapping[str, Any]) -> None:
    """Raise BundleError when manifest.json is not as it was written."""
    if (digest := own_hash(content)) != content[OWN_HASH]:
        raise BundleError(
            f"{MANIFEST_NAME} was changed", got=f"sha256 {digest}", expected=content[OWN_HASH], fix="copy it again"
        )


def state_bytes(specs: Iterable[StateSpec]) -> int:
    """Bytes of all states of one sequence: a symbolic dimension (the batch) counts as 1."""
    return sum(DTYPE_BYTES[spec.dtype] * prod(dim for dim in spec.shape if isinstance(dim, int)) for spec in specs)


def model_hash(manifest: Manifest) -> str:
    """Hexadecimal sha256 that identifies the model a saved state belongs to.

    Over the hash of the student's weights where known, else over the weight-bearing files' hashes; and over the
    states as float32 in canonical axis order, which every target and every precision of the state shares.
    """
    weights: Any = {path: entry.sha256 for path, entry in manifest.files.items() if path.endswith(WEIGHT_SUFFIXES)}
    if manifest.model.weights_hash:
        weights = [manifest.model.weights_hash, manifest.precision.weights]
    states = [[spec.name, spec.dtype, list(spec.canonical_shape)] for spec in exact_specs(manifest.state)]
    text = json.dumps([weights, sorted(states, key=lambda item: str(item[0]))], sort_keys=True)
    return sha256(text.encode()).hexdigest()


def check_state(manifest: Manifest) -> None:
    """Raise BundleError unless the states are distinct, sum up, and stand in the prefill and step graphs."""
    for names in ([spec.name for spec in manifest.state], [spec.output for spec in manifest.state]):
        if len(set(names)) != len(names):
            raise refused("state", "a name that occurs twice")
    for spec in manifest.state:  # an output that belongs to another state would be loaded and saved as that one
        past = _STATE_NAME.fullmatch(spec.name)
        if past is None or int(past[1]) >= manifest.model.layers or spec.output != f"present.{past[1]}.{past[2]}":
            raise refused("state", f"{spec.name} -> {spec.output}", "past.LAYER.KIND -> present.LAYER.KIND")
    if (total := state_bytes(manifest.state)) != manifest.state_bytes:
        raise refused("state_bytes", manifest.state_bytes, str(total))
    for name, graph in manifest.graphs.items():
        if name not in ("prefill", "step"):
            continue
        inputs = {spec.name: spec for spec in graph.inputs}
        outputs = {spec.name: spec for spec in graph.outputs}
        for spec in manifest.state:
            for own, specs in ((spec.name, inputs), (spec.output, outputs)):
                wanted = TensorSpec(own, spec.dtype, spec.shape)
                single = TensorSpec(own, spec.dtype, (1, *spec.shape[1:]))  # a graph may take one sequence only
                if specs.get(own) not in (wanted, single):
                    raise refused(f"graphs.{name}", specs.get(own, f"no {own}"), wanted)


def check_profiles(manifest: Manifest) -> None:
    """Raise BundleError unless every profile is of a graph's dynamic input and its shapes fit and rise."""
    for name, profile in manifest.profiles.items():
        where = f"profiles.{name}"
        if name not in manifest.graphs or not isinstance(profile, dict):
            raise refused(where, "no graph of that name")
        inputs = {spec.name: spec for spec in manifest.graphs[name].inputs}
        for key, shapes in profile.items():
            check_keys(shapes, {"min": list, "opt": list, "max": list}, f"{where}.{key}")
            spec, rows = inputs.get(key), (shapes["min"], shapes["opt"], shapes["max"])
            if spec is None or any(len(row) != len(spec.shape) for row in rows):
                raise refused(f"{where}.{key}", rows, "shapes of an input of the graph")
            for dim, *sizes in zip(spec.shape, *rows, strict=True):
                whole = all(type(size) is int and size > 0 for size in sizes)
                if not whole or sizes != sorted(sizes) or (isinstance(dim, int) and set(sizes) != {dim}):
                    raise refused(f"{where}.{key}", sizes, f"rising sizes of {dim}")


def check_graph_weights(manifest: Manifest) -> None:
    """Raise BundleError unless every entry is of a graph and a data file, and no larger than that file."""
    for name, data in manifest.graph_weights.items():
        where = f"graph_weights.{name}"
        if name not in manifest.graphs or not isinstance(data, dict):
            raise refused(where, "no graph of that name, or no JSON object")
        for file, nbytes in data.items():
            if file not in manifest.files or not file.endswith(DATA_SUFFIX):
                raise refused(where, f"{file!r:.60}", "a data file of the bundle")
            if type(nbytes) is not int or not 0 < nbytes <= manifest.files[file].bytes:
                raise refused(f"{where}.{file}", f"{nbytes!r:.60}", f"1 to {manifest.files[file].bytes} bytes")


def _check_version(data: Any) -> None:
    if not isinstance(data, dict):
        raise refused("content", type(data).__name__, "a JSON object")
    if data.get("format") != FORMAT:
        raise refused("format", repr(data.get("format")), repr(FORMAT))
    if type(data.get("format_version")) is not int or data["format_version"] != FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST_NAME}: format_version",
            got=repr(data.get("format_version")),
            expected=FORMAT_VERSION,
            fix="export the bundle again, or install the linmu that wrote it",
        )


def _model(data: Any) -> ModelFacts:
    check_keys(data, _MODEL, "model", optional=_MODEL_OPTIONAL)
    with read_as_manifest():
        mmate, rules = MMateConfig.from_json(data["mmate"]), PromptRules.from_json(data["prompt_rules"])
    if mmate.rule not in CARRIED_RULES:
        raise BundleError(
            f"{MANIFEST_NAME}: model.mmate.rule",
            got=mmate.rule,
            expected=" or ".join(CARRIED_RULES),
            fix="install the linmu that wrote it",
        )
    return ModelFacts(**{**data, "mmate": mmate, "prompt_rules": rules})


def _tensor_fields(where: str, data: dict[str, Any]) -> None:
    if data["dtype"] not in DTYPE_BYTES:
        raise refused(f"{where}.dtype", data["dtype"], "one of " + ", ".join(sorted(DTYPE_BYTES)))
    for dim in data["shape"]:
        if not (type(dim) is int and dim >= 0) and not (isinstance(dim, str) and dim):
            raise refused(f"{where}.shape", repr(dim), "a size or a dimension's name")


def _tensor(where: str, data: Any) -> TensorSpec:
    check_keys(data, {"name": str, "dtype": str, "shape": list}, where)
    _tensor_fields(where, data)
    return TensorSpec.from_json(data)


def _graph(where: str, data: Any) -> GraphSpec:
    check_keys(data, {"file": str, "inputs": list, "outputs": list}, where)
    for side in ("inputs", "outputs"):
        names = [_tensor(f"{where}.{side}[{index}]", value).name for index, value in enumerate(data[side])]
        if len(set(names)) != len(names):
            raise refused(f"{where}.{side}", "a name that occurs twice")
    return GraphSpec.from_json(data)


def _state(where: str, data: Any) -> StateSpec:
    kinds = {"name": str, "output": str, "dtype": str, "shape": list, "axes": list, "init": str}
    check_keys(data, kinds, where)
    _tensor_fields(where, data)
    canonical = CANONICAL_AXES[state_kind(data["name"])]
    if sorted(map(str, data["axes"])) != sorted(canonical) or len(data["axes"]) != len(data["shape"]):
        raise refused(f"{where}.axes", data["axes"], f"an order of {', '.join(canonical)}, one per dimension")
    if data["init"] != "zeros":
        raise refused(f"{where}.init", data["init"], "zeros")
    return StateSpec.from_json(data)


def _file(where: str, data: Any) -> FileEntry:
    check_keys(data, {"sha256": str, "bytes": int}, where)
    if len(data["sha256"]) != 64 or set(data["sha256"]) - set("0123456789abcdef"):
        raise refused(f"{where}.sha256", repr(data["sha256"]), "64 hexadecimal digits")
    return FileEntry(data["sha256"], data["bytes"])
