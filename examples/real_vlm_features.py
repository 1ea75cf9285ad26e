"""The tower's features of a data folder's pictures, computed once while it is frozen and kept on disk as float16."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from real_vlm_data import marks_file
from torch import Tensor

from linmu.errors import InputError
from linmu.files.atomic import write_bytes
from linmu.formats.data_folder import DataFolder
from linmu.formats.data_line import Sample
from linmu.formats.picture_file import opened_picture
from linmu.processing import Processor
from linmu.processing.encode import model_processor

Say = Callable[[str], None]
BATCH = 64  # pictures through the tower at once


@dataclass(frozen=True)
class Asked:
    """One round of a data folder: rows of its pictures in the features, and its questions."""

    pictures: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Features:
    """features [pictures, tokens, C] float16 on disk; rounds that refer to its rows; marks and file of each picture."""

    features: np.ndarray
    rounds: tuple[Asked, ...]
    marks: tuple[list, ...]
    files: tuple[Path, ...]
    processor: Processor

    def of(self, pictures: Sequence[int]) -> Tensor:
        """Features of some pictures, [n, tokens, C] float32."""
        return torch.from_numpy(self.features[list(pictures)].astype(np.float32))

    def pixels(self, pictures: Sequence[int]) -> Tensor:
        """The pictures themselves, [n, 3, side, side] float32, for a tower that is trained."""
        return torch.cat([_pixels(self.processor, self.files[picture]) for picture in pictures])


def tower_features(model: hf.LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the projector reads of pixels [n, 3, side, side]: [n, tokens, C], as the model itself takes it."""
    layers, tower = model.config.vision_feature_layer, model.model.vision_tower
    states = tower(pixels.to(tower.dtype), output_hidden_states=True).hidden_states
    taps = [layers] if isinstance(layers, int) else layers
    return torch.cat([states[tap][:, 1:] for tap in taps], dim=-1)


def open_features(data: Path, model: hf.LlavaForConditionalGeneration, teacher: Path, say: Say = print) -> Features:
    """Features of a data folder, computed where they are missing; a run that was stopped goes on.

    model: whose tower computes them; teacher: its folder, whose processor prepares pictures. Raises InputError when
    the marks beside the folder are of other pictures.
    """
    rounds, files = _rounds(DataFolder.open(data).samples)
    marks = [json.loads(line) for line in marks_file(data).read_text().splitlines()]
    if len(marks) != len(files):
        raise InputError(f"{marks_file(data)}", got=f"{len(marks)} lines", expected=f"{len(files)}, one a picture")
    processor = model_processor(teacher)
    features = _computed(files, data.with_name(f"{data.name}.features"), model, processor, say)
    return Features(features, tuple(rounds), tuple(marks), tuple(files), processor)


def _rounds(samples: Sequence[Sample]) -> tuple[list[Asked], list[Path]]:
    """Neighbouring samples on the same pictures are a round; the pictures in order of their rows."""
    rounds: list[Asked] = []
    files: list[Path] = []
    start = 0
    for index in range(1, len(samples) + 1):
        if index == len(samples) or samples[index].images != samples[start].images:
            rows = range(len(files), len(files) + len(samples[start].images))
            rounds.append(Asked(tuple(rows), tuple(samples[start:index])))
            files += samples[start].images
            start = index
    return rounds, files


@torch.inference_mode()
def _computed(
    files: list[Path], stem: Path, model: hf.LlavaForConditionalGeneration, processor: Processor, say: Say
) -> np.ndarray:
    layers = model.config.vision_feature_layer
    width = model.config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    shape = (len(files), model.config.image_seq_length, width)
    file, progress = (stem.with_name(f"{stem.name}{ending}") for ending in (".npy", ".json"))
    done = json.loads(progress.read_text())["pictures"] if progress.exists() else 0
    if done == len(files):
        return np.load(file, mmap_mode="r")
    if done and np.load(file, mmap_mode="r").shape != shape:
        raise InputError(f"{file}", got="features of other pictures", fix="remove it")
    kept = np.lib.format.open_memmap(file, "r+" if done else "w+", np.float16, shape)
    for start in range(done, len(files), BATCH):
        stop = min(start + BATCH, len(files))
        pixels = torch.cat([_pixels(processor, path) for path in files[start:stop]])
        kept[start:stop] = tower_features(model, pixels).float().numpy()
        if start // BATCH % 10 == 9 or stop == len(files):
            kept.flush()
            write_bytes(progress, json.dumps({"pictures": stop}).encode())
            say(f"{stem.name}: {stop} of {len(files)} pictures")
    return np.load(file, mmap_mode="r")


def _pixels(processor: Processor, file: Path) -> Tensor:
    """[1, 3, side, side] float32, as the processor of the teacher prepares them."""
    with opened_picture(file) as picture:
        inputs = processor.encode("?", [picture.convert("RGB")])
    return torch.from_numpy(np.asarray(inputs.vision_calls[0]["pixel_values"]))
