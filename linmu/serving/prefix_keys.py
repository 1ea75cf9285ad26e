"""Keys of states: equal keys, equal bits. A chain of sha256 over everything that leads to a state."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from linmu.errors import InputError
from linmu.formats.bundle import ENGINES, Bundle, file_sha256
from linmu.formats.manifest import own_hash
from linmu.layout import PromptLayout
from linmu.processing import ModelInputs
from linmu.system.cpu import cpu_kind
from linmu.version import __version__

# What computes states, and what turns files into pixels.
PACKAGES = ("onnxruntime", "tensorrt", "tensorrt-rtx-cu12", "executorch", "torch", "numpy", "pillow", "av")


def runtime_identity(bundle: Bundle, backend: str, threads: int | None) -> str:
    """Hexadecimal sha256 of what computes: the bundle's files, the backend, threads, versions, the processor's kind.

    threads: as the runner was opened with (None: as many as there are cores).
    """
    facts = {
        "bundle": own_hash(bundle.manifest.to_json()),
        "engines": _engines(bundle),
        "model": bundle.model_hash,
        "backend": backend,
        "threads": threads or os.cpu_count(),
        "linmu": __version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": cpu_kind(),
    }
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prompt_keys(
    identity: str, inputs: ModelInputs, layout: PromptLayout, cuts: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """The key of the state behind each piece of a prompt that is read from its beginning.

    It hashes the key before it, the piece's token ids, and the media that begin in it (content, sampling and grid).
    Raises InputError for media without digests (`Processor.known`).
    """
    if len(inputs.digests) != len(inputs.media):
        raise InputError(
            "keys of a prompt", got=f"{len(inputs.media)} media, {len(inputs.digests)} digests", fix="use KnownMedia"
        )
    starts, keys, key = _media_starts(inputs, layout), list[str](), identity
    for start, stop in cuts:
        here = np.flatnonzero((starts >= start) & (starts < stop)).tolist()
        media = [[inputs.digests[i], inputs.media[i].kind, *map(_exact, _numbers(inputs, i))] for i in here]
        ids = np.ascontiguousarray(inputs.input_ids[start:stop], "<i8")
        digest = sha256(json.dumps([key, stop - start, media]).encode())
        digest.update(ids.data)
        key = digest.hexdigest()
        keys.append(key)
    return tuple(keys)


def _media_starts(inputs: ModelInputs, layout: PromptLayout) -> np.ndarray:
    """The place of each medium's first token."""
    if not layout.spans:
        return np.zeros(0, np.int64)
    tokens = np.sort(np.concatenate([span.positions for span in layout.spans]))
    counts = [sum(t * h * w for t, h, w in medium.tiles) for medium in inputs.media]
    return tokens[np.cumsum([0, *counts[:-1]])]


def _numbers(inputs: ModelInputs, index: int) -> list[float]:
    medium = inputs.media[index]
    return [medium.seconds_per_grid, *(size for tile in medium.tiles for size in tile)]


def _exact(number: float) -> str:
    return float(number).hex()


def _engines(bundle: Bundle) -> dict[str, str]:
    """Hashes of what lists the engines that were built on this device (their bits are not the manifest's)."""
    return {path.name: file_sha256(path) for path in sorted((bundle.folder / ENGINES).glob("*.json"))}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
