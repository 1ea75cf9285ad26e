"""Students too large to hold in float32: the decoder's weights stay in their files, mapped, and are read when needed.

Parameters of a mapped student keep the dtype they are stored in, and every read is exact, so that results are those
of the same student in float32. The vision tower and all vectors are float32 as ever.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.formats.model_files import find_weights
from linmu.formats.safetensors_file import read_header
from linmu.model.folders import load_student
from linmu.model.widened import decoder_parts, widened
from linmu.verification.golden import LARGE_PARAMETERS

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ATTRIBUTE = "linmu_mapped"


class MappedFiles:
    """The tensors of a folder's safetensors files as views of the mapped files, by name (floats only)."""

    def __init__(self, folder: Path):
        self.tensors: dict[str, Tensor] = {}
        self._maps: list[mmap.mmap] = []
        for path in find_weights(folder).files:
            header = read_header(path)
            with path.open("rb") as file:
                # a private mapping: torch wants memory that it could write to, nothing ever does
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps.append(mapped)
            for name, entry in header.tensors.items():
                size: int = prod(entry.shape)
                if entry.dtype in DTYPES and size:
                    place = {"count": size, "offset": header.data_start + entry.start}
                    flat = torch.frombuffer(mapped, dtype=DTYPES[entry.dtype], **place)
                    self.tensors[name] = flat.reshape(entry.shape)

    def release(self) -> None:
        """Let go of the pages that were read: they stay in the system's cache, not in this process."""
        for mapped in self._maps:
            if hasattr(mapped, "madvise"):
                mapped.madvise(mmap.MADV_DONTNEED)

    def reader(self, thunk: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """`thunk` as a float32 tensor of its own, whose pages are let go of at once."""

        def read() -> Tensor:
            value = thunk().detach().to(torch.float32, copy=True)
            self.release()
            return value

        return read


def open_student(folder: Path) -> PreTrainedModel:
    """The student of a folder for an export: float32, or mapped (`mapped_files`) with over LARGE_PARAMETERS.

    Raises InputError as `load_student` does.
    """
    if find_weights(folder).parameters <= LARGE_PARAMETERS:
        return load_student(folder)
    model, files = load_student(folder, "auto"), MappedFiles(folder)
    if any(name not in files.tensors for name, _ in model.named_parameters()):  # names of another release
        return load_student(folder)
    decoder = {id(value) for part in decoder_parts(model) for value in part.parameters()}
    for name, parameter in model.named_parameters():
        stored = files.tensors[name]
        stays = id(parameter) in decoder and parameter.ndim > 1
        parameter.data = stored if stays else stored.to(torch.float32, copy=True)
        if not stays:
            files.release()
    setattr(model, ATTRIBUTE, files)
    return model


def mapped_files(model: PreTrainedModel) -> MappedFiles | None:
    """The files that a model's decoder weights are read from, or None for a model that is held in float32."""
    return getattr(model, ATTRIBUTE, None)


def release_pages(model: PreTrainedModel) -> None:
    """Let go of what was read from a mapped student's files; nothing to do for another one."""
    if (files := mapped_files(model)) is not None:
        files.release()


@contextmanager
def upcast(model: PreTrainedModel) -> Iterator[None]:
    """While open, a forward pass of a mapped student turns each layer into float32 when it comes to it."""
    files = mapped_files(model)
    if files is None:
        yield
        return
    with widened(decoder_parts(model), after=files.release):
        yield
