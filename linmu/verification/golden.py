"""Golden vectors, the reading side: what a bundle's golden/ files hold and the seeded rules they were made with.

Glossary
    G         groups of a state that are compared on their own scale: its heads, or 1 for a conv state
    P         seeded +-1 projections of each group: any difference d moves each of them by about |d|
    snapshot  all states at one moment: projections and norms of every group, and where room allows the full tensors
All pseudo-random values come from SHAKE-256 of a label, so they are the same on every machine and in every library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import shake_256
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from linmu.errors import BundleError, InputError
from linmu.files.strict_json import read_json
from linmu.formats.bundle import Bundle
from linmu.formats.safetensors_file import read_header
from linmu.specs import state_kind

GRAPHS_FILE = "golden/graphs.safetensors"
ROLLOUT_FILE = "golden/rollout.safetensors"
PROMPTS_FILE = "golden/prompts.json"
PICTURE_FILE = "golden/picture.png"

FORMAT_VERSION = "1"
START = "prefill"  # the vector that steps go on from, where the metadata's "start" does not name another one
SEED = "linmu-golden-1"
ROLLOUT_STEPS = 256
LARGE_PARAMETERS = 250_000_000  # above: weights are read anew at every step, and fewer steps are made
LARGE_READS = 32_000_000_000  # weights that the roll-out of such a model may read
LEAST_STEPS, LEAST_NEW_TOKENS = 8, 4
SAMPLED_IDS = 64
PROJECTIONS = 2
NEW_TOKENS = 32
PICTURE_SIZE = (140, 100)
TEXT_PROMPT = "Name three things that float on water, and say why."
PICTURE_PROMPT = "What is in this picture?"

PROMPT_TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "prompt", "text"), str),
    "max_new_tokens": int,
    **dict.fromkeys(("images", "input_ids", "pixels", "token_ids", "gaps", "noise"), list),
}
TENSOR_TYPES = {"F32", "F64", "F16", "I64", "I32", "BOOL"}

State = Mapping[str, np.ndarray]


def seeded_bytes(label: str, count: int) -> np.ndarray:
    """`count` bytes [count] uint8 that depend on the label alone."""
    return np.frombuffer(shake_256(f"{SEED}:{label}".encode()).digest(count), np.uint8)


def seeded_normal(label: str, shape: Sequence[int]) -> np.ndarray:
    """Evenly spread values of mean 0 and standard deviation 1, `shape`, float32."""
    raw = seeded_bytes(label, int(np.prod(shape))).reshape(shape)
    return ((raw.astype(np.float32) - 127.5) / np.float32(73.9)).astype(np.float32)


def seeded_ids(label: str, vocab: int, count: int) -> np.ndarray:
    """`count` token ids [count] int64 below `vocab`, which may repeat."""
    return (seeded_bytes(label, 8 * count).view("<u8") % np.uint64(vocab)).astype(np.int64)


def sampled_ids(vocab: int) -> np.ndarray:
    """The ascending distinct ids at which every step's logits are stored: at most SAMPLED_IDS of them."""
    return np.unique(seeded_ids("vocabulary", vocab, SAMPLED_IDS))


def signs(label: str, size: int) -> np.ndarray:
    """Rows of +-1, [PROJECTIONS, size] float32."""
    bits = np.unpackbits(seeded_bytes(label, PROJECTIONS * (size // 8 + 1)).reshape(PROJECTIONS, -1), axis=1)
    return bits[:, :size].astype(np.float32) * 2 - 1


def lengths(parameters: int) -> tuple[int, int]:
    """Steps of the roll-out and most new tokens of an answer for a model of so many parameters."""
    if parameters <= LARGE_PARAMETERS:
        return ROLLOUT_STEPS, NEW_TOKENS
    steps = max(LARGE_READS // parameters, LEAST_STEPS)
    return steps, max(steps * NEW_TOKENS // ROLLOUT_STEPS, LEAST_NEW_TOKENS)


def forced_token(step: int, best: int, random_ids: np.ndarray) -> int:
    """The token of a roll-out's step: the reference's own choice at even steps, a seeded one at odd steps."""
    return best if step % 2 == 0 else int(random_ids[step])


def forced_ids(vocab: int, steps: int, avoid: Sequence[int] = ()) -> np.ndarray:
    """The seeded tokens [steps] of `forced_token`; ids of `avoid` (media tokens) become 0."""
    ids = seeded_ids("rollout", vocab, steps)
    return np.where(np.isin(ids, list(avoid)), 0, ids)


def synthetic_picture() -> Image.Image:
    """A small RGB picture: smooth blobs, sharp edges and a little noise, so that any wrong filter or mean shows."""
    width, height = PICTURE_SIZE
    coarse = Image.fromarray(seeded_bytes("picture", 6 * 8 * 3).reshape(6, 8, 3)).resize(PICTURE_SIZE, 3)
    pixels = np.asarray(coarse).astype(np.int16)
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 20)
    pixels += seeded_bytes("noise", pixels.size).reshape(pixels.shape).astype(np.int16) % 16
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def grouped(name: str, array: np.ndarray) -> np.ndarray:
    """A canonical state as [G, elements]: one row per head; a conv state is one row."""
    return array.reshape(1, -1) if state_kind(name) == "conv" else array.reshape(array.shape[0] * array.shape[1], -1)


class Projector:
    """Projects states; the sign rows of each size are made once."""

    def __init__(self) -> None:
        self._signs: dict[int, np.ndarray] = {}

    def rows(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(projections [G, P], norms [G]) of rows [G, elements]."""
        size = values.shape[1]
        if size not in self._signs:
            self._signs[size] = signs(f"signs.{size}", size).T
        return values @ self._signs[size], np.linalg.norm(values, axis=1)

    def state(self, state: State) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`rows` of every canonical state by name."""
        return {name: self.rows(grouped(name, array)) for name, array in state.items()}


@dataclass(frozen=True)
class Snapshot:
    """All states at one moment: projections [G, P] and norms [G] by name; `full` is empty where room was short."""

    projections: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    full: dict[str, np.ndarray]


@dataclass(frozen=True)
class Golden:
    """A bundle's golden vectors; see linmu/export/bundles/golden.py for what is made how."""

    graphs: dict[str, np.ndarray]
    rollout: dict[str, np.ndarray]
    prompts: list[dict[str, Any]]
    metadata: dict[str, str]

    @property
    def float_inputs(self) -> bool:
        """Whether graph vectors and roll-out are of the integers behind inputs that are not rounded."""
        return self.metadata.get("inputs") == "float"

    @property
    def start(self) -> str:
        """The graph vector behind which the step vector and the roll-out stand."""
        return self.metadata.get("start", START)

    def snapshot(self, name: str) -> Snapshot:
        """The states after graph vector `name` ("prefill", "text", "step") or "end" of the roll-out."""
        tensors = self.rollout if name == "end" else self.graphs
        parts: dict[str, dict[str, np.ndarray]] = {"projection": {}, "norm": {}, "state": {}}
        for key, value in tensors.items():
            moment, _, rest = key.partition("/")
            kind, _, state = rest.partition("/")
            if moment == name and kind in parts:
                parts[kind][state] = value
        return Snapshot(parts["projection"], parts["norm"], parts["state"])


def read_golden(bundle: Bundle) -> Golden:
    """A bundle's golden vectors; raises BundleError when they are missing or damaged, InputError of another model."""
    if not bundle.manifest.golden:
        raise BundleError(f"{bundle.folder} has no golden vectors", fix="verify it with --student, or export again")
    graphs, metadata = _tensors(bundle, GRAPHS_FILE)
    rollout, _ = _tensors(bundle, ROLLOUT_FILE)
    path = bundle.path(PROMPTS_FILE)
    document = read_json(path, PROMPTS_FILE, BundleError)
    prompts = document.get("prompts") if isinstance(document, dict) else None
    if not isinstance(prompts, list):
        raise BundleError(f"{path} cannot be read", got="no list of prompts", fix="export the bundle again")
    for number, prompt in enumerate(prompts):
        if (wrong := _wrong(prompt, set(bundle.manifest.files))) is not None:
            raise BundleError(f"{path}: prompt {number}", got=wrong, fix="export the bundle again")
    if metadata.get("format_version") != FORMAT_VERSION or metadata.get("seed") != SEED:
        got = f"version {metadata.get('format_version')}, seed {metadata.get('seed')}"
        raise BundleError("the golden vectors", got=got, expected=f"version {FORMAT_VERSION}", fix="export again")
    if metadata.get("weights_hash") != bundle.manifest.model.weights_hash:
        raise InputError(
            "the golden vectors belong to another model",
            got=str(metadata.get("weights_hash"))[:16],
            expected=bundle.manifest.model.weights_hash[:16],
            fix="export the bundle again",
        )
    return Golden(graphs, rollout, prompts, metadata)


def _wrong(prompt: Any, files: set[str]) -> str | None:
    """What a golden prompt lacks or has of another type; None for a whole one."""
    if not isinstance(prompt, dict):
        return type(prompt).__name__
    for name, kind in PROMPT_TYPES.items():
        if type(prompt.get(name)) is not kind:
            return f"{name} {prompt.get(name)!r:.40}"
    counts, numbers = (*prompt["input_ids"], *prompt["token_ids"], prompt["max_new_tokens"]), list[Any]()
    for name in ("gaps", "noise"):
        numbers += prompt[name]
        if len(prompt[name]) != len(prompt["token_ids"]):
            return f"{len(prompt[name])} {name} of {len(prompt['token_ids'])} tokens"
    for pixels in prompt["pixels"]:
        if not isinstance(pixels, dict) or set(pixels) != {"shape", "projection", "norm"}:
            return f"pixels {pixels!r:.40}"
        if not isinstance(pixels["shape"], list) or not isinstance(pixels["projection"], list):
            return f"pixels {pixels!r:.40}"
        counts, numbers = (*counts, *pixels["shape"]), [*numbers, *pixels["projection"], pixels["norm"]]
        if len(pixels["projection"]) != PROJECTIONS:
            return f"{len(pixels['projection'])} projections"
    if not all(type(count) is int and 0 <= count < 1 << 31 for count in counts) or prompt["max_new_tokens"] < 1:
        return "ids or sizes that are no counts"
    if not all(type(number) in (int, float) for number in numbers):
        return "numbers that are none"
    unknown = [name for name in prompt["images"] if not isinstance(name, str) or name not in files]
    return f"image {unknown[0]!r:.40}, which the manifest does not list" if unknown else None


def _tensors(bundle: Bundle, name: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    path = bundle.path(name)
    header = read_header(path)
    if other := sorted({entry.dtype for entry in header.tensors.values()} - TENSOR_TYPES):
        raise BundleError(f"{path}: values of type", got=other[0], expected=" or ".join(sorted(TENSOR_TYPES)))
    try:
        return load_tensors(path.read_bytes()), dict(header.metadata)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} cannot be read", got=error, fix="export the bundle again") from error
