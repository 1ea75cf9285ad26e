"""The engine cache: `engines/<graph>.<key>.engine` and engines.json, which says what each key was made of.

A key is a hash of everything that a compiled engine depends on. When one of them changes, the engine is not found and
`linmu build` makes a new one and removes the old.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from linmu.errors import BundleError
from linmu.files.atomic import write_bytes
from linmu.formats.bundle import ENGINES, Bundle
from linmu.runtimes import shape_ranges

INDEX = "engines.json"
TIMING_CACHE = "timing.cache"
FORMAT_VERSION = 1
SETTINGS_VERSION = 1  # of the settings in builder.py: raise it with them
KEY_DIGITS = 16


@dataclass(frozen=True)
class EngineParts:
    """Everything an engine depends on.

    graph: sha256 of the ONNX file; data: sha256 of each data file it reads; flavour, version: of TensorRT; gpu:
    name; capability: such as "8.7"; ranges: of its dimensions; level: of optimisation (None: TensorRT's own default);
    settings: version of the builder's settings.
    """

    graph: str
    data: dict[str, str]
    flavour: str
    version: str
    gpu: str
    capability: str
    ranges: dict[str, dict[str, int]]
    level: int | None = None
    settings: int = SETTINGS_VERSION

    @property
    def key(self) -> str:
        """Hexadecimal digits that name the engine."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:KEY_DIGITS]

    def changes(self, other: EngineParts) -> list[str]:
        """Names of the parts that differ."""
        mine, others = asdict(self), asdict(other)
        return [name for name in mine if mine[name] != others[name]]


@dataclass(frozen=True)
class Engine:
    """One compiled engine: file name in engines/, its size, what it was made of, and what building it took."""

    graph: str
    file: str
    nbytes: int
    parts: EngineParts
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def ranges(self) -> shape_ranges.Ranges:
        """The ranges it was built for."""
        return shape_ranges.from_json(self.parts.ranges)


def engine_parts(
    bundle: Bundle,
    graph: str,
    ranges: shape_ranges.Ranges,
    *,
    flavour: str,
    version: str,
    gpu: str,
    capability: str,
    level: int | None = None,
) -> EngineParts:
    """What an engine of `graph` depends on here; raises BundleError where the manifest does not say its weights."""
    files, name = bundle.manifest.files, bundle.manifest.graphs[graph].file
    data = {file: files[file].sha256 for file in sorted(data_bytes(bundle, graph))}
    return EngineParts(files[name].sha256, data, flavour, version, gpu, capability, shape_ranges.to_json(ranges), level)


def data_bytes(bundle: Bundle, graph: str) -> dict[str, int]:
    """Bytes that `graph` reads of each data file; raises BundleError where the manifest does not say it."""
    weights = bundle.manifest.graph_weights
    if graph not in weights:
        raise BundleError(
            f"manifest.json: graph_weights has no {graph}",
            expected="what each compiled graph reads",
            fix="export the bundle again",
        )
    return weights[graph]


def weight_bytes(bundle: Bundle, graph: str) -> int:
    """All bytes that a compiler loads of `graph`: its file and what it reads of data files."""
    return bundle.manifest.files[bundle.manifest.graphs[graph].file].bytes + sum(data_bytes(bundle, graph).values())


def engine_name(graph: str, parts: EngineParts) -> str:
    """The file name of an engine."""
    return f"{graph}.{parts.key}.engine"


def read_index(folder: Path) -> dict[str, Engine]:
    """Engines by graph, of a bundle folder; {} where there is no index; raises BundleError when it is damaged."""
    path = folder / ENGINES / INDEX
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {document['format_version']!r}")
        engines = {graph: _engine(graph, entry) for graph, entry in document["engines"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read", got=error, fix="linmu build --force") from error
    return engines


def write_index(folder: Path, engines: Iterable[Engine]) -> None:
    """Replace the index."""
    content = {engine.graph: {**asdict(engine), "key": engine.parts.key} for engine in engines}
    document = {"format": "linmu-engines", "format_version": FORMAT_VERSION, "engines": content}
    write_bytes(folder / ENGINES / INDEX, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def engine_problem(folder: Path, engine: Engine | None, wanted: EngineParts) -> str | None:
    """Why an engine of the index cannot be used where `wanted` is needed, or None."""
    if engine is None:
        return "was never built"
    if changed := engine.parts.changes(wanted):
        return f"was built for another {' and another '.join(changed)}"
    path = folder / ENGINES / engine.file
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != engine.nbytes:
        return "is damaged"
    return None


def remove_stale(folder: Path, engines: Iterable[Engine]) -> list[str]:
    """Remove engines that no index entry names, and what an interrupted build left; their names."""
    kept = {engine.file for engine in engines}
    removed = []
    for path in sorted((folder / ENGINES).iterdir()):
        partial = path.name.startswith(".") and path.name.endswith(".partial")
        if path.is_file() and (partial or (path.suffix == ".engine" and path.name not in kept)):
            path.unlink(missing_ok=True)
            removed.append(path.name)
    return removed


def _engine(graph: str, entry: dict[str, Any]) -> Engine:
    parts = EngineParts(**entry["parts"])
    shape_ranges.from_json(parts.ranges)
    engine = Engine(
        graph, str(entry["file"]), int(entry["nbytes"]), parts, float(entry["seconds"]), int(entry["peak_bytes"])
    )
    if engine.file != engine_name(graph, parts):  # so no path of another folder, and no other key
        raise ValueError(f"{graph}: file {engine.file!r}")
    return engine
