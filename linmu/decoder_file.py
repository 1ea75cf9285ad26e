"""decoder.json of a bundle: where every decoder weight lies in the data file, and the decoder's sizes (no torch).

It lets a runner map the weights once and hand them to all graphs, and lets torch run the very same weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import BundleError

DECODER_FILE = "decoder.json"


@dataclass(frozen=True)
class WeightEntry:
    """One weight of the data file: numpy dtype name, shape, byte offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class DecoderFile:
    """Data file name, weights by name, and the scalar fields of the step form (linmu.step.form.DecoderForm)."""

    data: str
    weights: dict[str, WeightEntry]
    form: dict[str, Any]


def write_decoder_file(folder: Path, decoder: DecoderFile) -> None:
    """Write decoder.json into a bundle that is being made."""
    weights = {name: [entry.dtype, list(entry.shape), entry.offset] for name, entry in decoder.weights.items()}
    document = {"data": decoder.data, "form": decoder.form, "weights": weights}
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
        return DecoderFile(str(document["data"]), weights, dict(document["form"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
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
