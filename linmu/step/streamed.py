"""Weights of a decoder that does not fit into memory in float32: layers' matrices are read whenever they are used.

Making a packed matrix from a student's takes longer than reading it. So it is written to a file without a name, in the
narrowest type that holds all its values exactly, when it is made for the first time, and read from there afterwards.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from linmu.step.form import DecoderForm, is_matrix


class Spool:
    """Float32 tensors in a file of `folder` that has no name: it is gone with the process, however that ends."""

    def __init__(self, folder: Path):
        self._file = tempfile.TemporaryFile(dir=folder)
        self._places: dict[str, tuple[int, torch.dtype, torch.Size]] = {}

    def write(self, name: str, value: Tensor) -> None:
        """Keep a tensor; contiguous ones only, so that it comes back with the same strides."""
        if value.is_contiguous():
            narrow = narrowest(value)
            self._places[name] = (self._file.seek(0, os.SEEK_END), narrow.dtype, value.shape)
            self._file.write(narrow.view(torch.uint8).numpy().data)

    def read(self, name: str) -> Tensor | None:
        """The tensor, float32, or None when it was not written."""
        if name not in self._places:
            return None
        offset, dtype, shape = self._places[name]
        content = bytearray(prod(shape) * dtype.itemsize)
        self._file.seek(offset)
        if self._file.readinto(content) != len(content):
            raise OSError(f"the temporary file of matrices ended in {name}")
        return torch.frombuffer(content, dtype=dtype).to(torch.float32, copy=True).view(shape)

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
        self._places.clear()


def narrowest(value: Tensor) -> Tensor:
    """A float32 tensor in float16 or bfloat16 if that holds every value exactly, or as it is."""
    for dtype in (torch.float16, torch.bfloat16):
        narrow = value.to(dtype)
        if torch.equal(narrow.to(torch.float32), value):
            return narrow
    return value


class StreamedWeights(MutableMapping[str, Tensor]):
    """Packed weights by name (form.py); vectors, integers and the tables are held, layers' float matrices are not."""

    def __init__(self, form: DecoderForm):
        self._held: dict[str, Tensor] = {}
        self._thunks: dict[str, Callable[[], Tensor]] = {}
        self._spool = None if form.scratch is None else Spool(form.scratch)
        for name, thunk in form.weights.items():
            if name.startswith("layers.") and is_matrix(name):
                self._thunks[name] = thunk
            else:
                self._held[name] = thunk().detach()

    def stream(self, name: str, thunk: Callable[[], Tensor]) -> None:
        """Make `name` with `thunk` when it is asked for."""
        self._thunks[name] = thunk

    def change(self, name: str, function: Callable[[Tensor], Tensor]) -> bool:
        """Put `function` behind a streamed weight that nobody has read yet; False for one that is held."""
        thunk = self._thunks.get(name)
        if thunk is not None:
            self._thunks[name] = lambda: function(thunk())
        return thunk is not None

    def __getitem__(self, name: str) -> Tensor:
        """The weight, float32 (integers as they are); raises KeyError."""
        weight = self._held.get(name)
        if weight is None and self._spool is not None:
            weight = self._spool.read(name)
        if weight is not None:
            return weight
        value = self._thunks[name]().detach()
        if self._spool is not None:
            self._spool.write(name, value)
        return value

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Hold a weight."""
        self._held[name] = value

    def __delitem__(self, name: str) -> None:
        """Drop a weight; raises KeyError."""
        del (self._held if name in self._held else self._thunks)[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is one, without reading it."""
        return name in self._held or name in self._thunks

    def __iter__(self) -> Iterator[str]:
        """All names."""
        yield from {**self._held, **self._thunks}

    def __len__(self) -> int:
        """How many there are."""
        return len({**self._held, **self._thunks})

    def clear(self) -> None:
        """Drop all, without reading them."""
        self._held.clear()
        self._thunks.clear()
        if self._spool is not None:
            self._spool.close()
            self._spool = None
