"""One data file for all graphs of a bundle: every weight stands in it once, streamed tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ALIGNMENT = 4096  # a page: lets runtimes map single tensors

MATRICES = ("in_proj", "swin", "out_proj", "gate_up", "down", "token_embedding", "head")  # stored as fp16 on request


def is_matrix(name: str) -> bool:
    """Whether a packed weight is one of the large matrices."""
    return name.rpartition(".")[2] in MATRICES


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight lies: numpy dtype, shape, byte offset and length in the data file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    length: int


def write_weights(
    path: Path,
    weights: dict[str, Callable[[], torch.Tensor]],
    half: bool,
    progress: Callable[[int, int], None] | None = None,
    whole: Collection[str] = (),
) -> dict[str, StoredWeight]:
    """Write all weights to `path` as float32; one tensor in memory at a time.

    With `half` matrices are written as float16, those named in `whole` excepted.
    """
    stored = {}
    with path.open("wb") as file:
        for count, (name, thunk) in enumerate(weights.items(), 1):
            array = thunk().detach().to(torch.float32).contiguous().numpy()
            if half and is_matrix(name) and name not in whole:
                array = array.astype(np.float16)
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            stored[name] = StoredWeight(array.dtype, array.shape, file.tell(), array.nbytes)
            file.write(memoryview(array).cast("B"))
            if progress is not None:
                progress(count, len(weights))
    return stored
