"""decoder.json of a bundle: where every decoder weight lies in the data file, and the decoder's sizes (no torch).

It lets a runner map the weights once and hand them to all graphs, and lets torch run the very same weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import BundleError
from linmu.matrix_format import MatrixFormat, part
from linmu.packing import PACKINGS, block_rows, unpack

DECODER_FILE = "decoder.json"
TABLE = "token_embedding"


@dataclass(frozen=True)
class WeightEntry:
    """One weight of the data file: numpy dtype name, shape, byte offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class DecoderFile:
    """Data file name, weights by name, and the scalar fields of the step form (linmu.step.form.DecoderForm).

    packing: of the integers of every quantized matrix, by its name (linmu.packing).
    """

    data: str
    weights: dict[str, WeightEntry]
    form: dict[str, Any]
    packing: dict[str, str] = field(default_factory=dict)

    def format(self, matrix: str) -> MatrixFormat | None:
        """How a matrix is quantized, or None."""
        plain = self.form.get("quantized", {}).get(matrix)
        return None if plain is None else MatrixFormat.from_json(plain)


def write_decoder_file(folder: Path, decoder: DecoderFile) -> None:
    """Write decoder.json into a bundle that is being made."""
    weights = {name: [entry.dtype, list(entry.shape), entry.offset] for name, entry in decoder.weights.items()}
    document = {"data": decoder.data, "form": decoder.form, "weights": weights, "packing": decoder.packing}
    (folder / DECODER_FILE).write_text(json.dumps(document, indent=1) + "\n")


def read_decoder_file(folder: Path) -> DecoderFile:
    """Read decoder.json; raises BundleError when it is missing or malformed."""
    path = folder / DECODER_FILE
    try:
        document = json.loads(path.read_text())
        weights = {
            name: WeightEntry(np.dtype(dtype).name, tuple(int(n) for n in shape), int(offset))
            for name, (dtype, shape, offset) in document["weights"].items()
        }
        packing = {str(name): str(kind) for name, kind in document.get("packing", {}).items()}
        file = DecoderFile(str(document["data"]), weights, dict(document["form"]), packing)
        for name in file.form.get("quantized", {}):
            file.format(name)
            if packing[name] not in PACKINGS:
                raise ValueError(f"packing {packing[name]!r}")
        return file
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read", got=error, fix="export the bundle again") from error


def map_weights(folder: Path, decoder: DecoderFile) -> dict[str, np.ndarray]:
    """Every weight as a read-only view of the mapped data file: no copy; pages are loaded when used.

    Raises BundleError when a weight lies outside the file.
    """
    path = folder / decoder.data
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    views = {}
    for name, entry in decoder.weights.items():
        length = int(np.prod(entry.shape, dtype=np.int64)) * np.dtype(entry.dtype).itemsize
        if entry.offset < 0 or entry.offset + length > mapped.size:
            raise BundleError(
                f"{path} is too short for {name}", got=f"{mapped.size} bytes", fix="copy the bundle again"
            )
        views[name] = mapped[entry.offset : entry.offset + length].view(entry.dtype).reshape(entry.shape)
    return views


def embedding_rows(views: dict[str, np.ndarray], decoder: DecoderFile, ids: np.ndarray) -> np.ndarray:
    """Rows `ids` [S] of the token embeddings, [S, D] float32, whatever they are stored as."""
    format = decoder.format(TABLE)
    if format is None:
        return np.asarray(views[TABLE][ids], np.float32)
    return block_rows(views[part(TABLE, "q")], views[part(TABLE, "scale")], format, np.asarray(ids))


def plain_parts(views: dict[str, np.ndarray], decoder: DecoderFile) -> dict[str, np.ndarray]:
    """Every weight as the step form has it: packed integers and scales unpacked (copies), the rest as in `views`."""
    found = dict(views)
    for name, packing in decoder.packing.items():
        format = decoder.format(name)
        assert format is not None  # read_decoder_file has looked
        scale, packed = views[part(name, "scale")], views[part(name, "q")]
        if packing == "blocks":
            scale = np.ascontiguousarray(scale.T)
            shape = (scale.shape[0] * format.group, scale.shape[1])
        elif packing == "nibbles":
            shape = (scale.shape[0] * format.group, scale.shape[1])
        else:
            shape = (packed.shape[0], packed.shape[1])
        found[part(name, "q")], found[part(name, "scale")] = unpack(packed, format, packing, shape), scale
    return found
