"""What is calibrated on: samples spread evenly over a data folder, or made-up ones where a user insists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from linmu.errors import InputError
from linmu.formats.data_folder import DataFolder
from linmu.processing import ModelInputs, Processor
from linmu.processing.encode import encode_sample

RANDOM = "random"
RANDOM_WORDS, PICTURE_SIDE = 24, 120


@dataclass(frozen=True)
class CalibrationSample:
    """A prompt, and the token ids of its answer (decode steps are forced to them)."""

    id: str
    inputs: ModelInputs
    answer: tuple[int, ...]


class DataSamples:
    """`count` samples at even distances in a data folder (all of a smaller one)."""

    def __init__(self, path: Path, processor: Processor, count: int):
        self.data, self.processor = DataFolder.open(path), processor
        places = np.linspace(0, len(self.data) - 1, min(count, len(self.data))).round().astype(int)
        self.places = [int(place) for place in places]

    @property
    def hash(self) -> str:
        """The folder's content."""
        return self.data.fingerprint

    def __len__(self) -> int:
        return len(self.places)

    def read(self, start: int) -> Iterator[CalibrationSample]:
        """The samples from number `start` on; raises InputError naming the line of one that cannot be read."""
        for place in self.places[start:]:
            sample = self.data.samples[place]
            encoded = encode_sample(sample, self.processor)
            ids = encoded.inputs.input_ids
            prompt = int(encoded.answer_mask.argmax()) if sample.answer else len(ids)
            inputs = ModelInputs(ids[:prompt], encoded.inputs.text, encoded.inputs.media, encoded.inputs.vision_calls)
            yield CalibrationSample(sample.place, inputs, tuple(int(i) for i in ids[prompt:]))


class RandomSamples:
    """Seeded nonsense: random ids, and noise as pictures where the model takes them."""

    hash = RANDOM

    def __init__(self, processor: Processor, vocab: int, vision: bool, count: int):
        self.processor, self.vocab, self.vision, self.count = processor, vocab, vision, count

    def __len__(self) -> int:
        return self.count

    def read(self, start: int) -> Iterator[CalibrationSample]:
        """The samples from number `start` on."""
        avoid = [*self.processor.media_token_ids, *self.processor.eos_token_ids]
        for number in range(start, self.count):
            rng = np.random.default_rng([0, number])
            ids = rng.integers(0, self.vocab, RANDOM_WORDS)
            ids = np.where(np.isin(ids, avoid), 0, ids).astype(np.int64)
            answer, inputs = tuple(int(i) for i in ids[:4]), ModelInputs(ids, "")
            if self.vision and number % 2 == 0:
                noise = rng.integers(0, 256, (PICTURE_SIDE, PICTURE_SIDE + 20, 3)).astype(np.uint8)
                inputs = self.processor.encode("", [Image.fromarray(noise)])
            yield CalibrationSample(f"random sample {number}", inputs, answer)


def open_samples(
    data: Path | None, processor: Processor, vocab: int, vision: bool, count: int, allow_random: bool
) -> DataSamples | RandomSamples:
    """Samples of a data folder; made-up ones only when asked for by name, for they calibrate for nothing real."""
    if data is not None:
        return DataSamples(Path(data), processor, count)
    if not allow_random:
        raise InputError(
            "no calibration data",
            expected="--data FOLDER with questions like those it will be asked",
            fix="--allow-random calibrates on noise, for trying the tools only",
        )
    return RandomSamples(processor, vocab, vision, count)
