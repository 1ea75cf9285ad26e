"""Rounds as training batches: the questions of a round share their pictures' tokens.

A row is the pictures' tokens and then every question with its answer. A question sees the pictures and itself, at the
positions it would have alone: the same losses as from one conversation a question, for a third of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from real_vlm_features import Asked, Features
from torch import Tensor

IGNORED = -100
MOST_TOKENS = 1400  # of a micro-batch, padding included


@dataclass(frozen=True)
class Row:
    """ids [S]; positions [S]; segments [S]: 0 the pictures, 1... the questions; labels [S] of the next token."""

    ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    labels: np.ndarray
    pictures: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """ids, positions, labels [B, S]; mask [B, 1, S, S] bool; questions [B, S]: whose answer a label is of, else -1.

    Pictures in order of the rows: features [pictures, tokens, C], or pixels [pictures, 3, side, side] for a tower that
    is trained.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    mask: Tensor
    questions: Tensor
    features: Tensor | None = None
    pixels: Tensor | None = None


class Rows:
    """Makes rows with a teacher's tokenizer."""

    def __init__(self, teacher: Path, config: hf.LlavaConfig):
        self.tokenizer = hf.AutoTokenizer.from_pretrained(teacher)
        self.image, self.tokens = config.image_token_index, config.image_seq_length

    def __call__(self, asked: Asked, first: int = 0, most: int | None = None) -> Row:
        """The row of a round, with its questions from `first` on, at most `most`."""
        start = [*self._ids("<|im_start|>user\n"), *[self.image] * self.tokens]
        for _ in asked.pictures[1:]:
            start += [*self._ids("\n"), *[self.image] * self.tokens]
        ids, positions, segments = list(start), list(range(len(start))), [0] * len(start)
        labels = [IGNORED] * len(start)
        for number, sample in enumerate(asked.samples[first:][:most], 1):
            prompt = self._ids(f"\n{sample.prompt}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._ids(f"{sample.answer}<|im_end|>")
            ids += prompt + answer
            positions += range(len(start), len(start) + len(prompt) + len(answer))
            segments += [number] * (len(prompt) + len(answer))
            labels += [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]
        return Row(np.array(ids), np.array(positions), np.array(segments), np.array(labels), asked.pictures)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids


def collated(rows: Sequence[Row], features: Features, live: bool = False) -> Batch:
    """Rows padded on the right; padding sees padding only. live: with pixels instead of features."""
    width = max(len(row.ids) for row in rows)
    shape = (len(rows), width)
    ids, positions = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels, segments = torch.full(shape, IGNORED), torch.full(shape, -1)
    questions, count = torch.full(shape, -1), 0
    for i, row in enumerate(rows):
        size = len(row.ids)
        for tensor, values in ((ids, row.ids), (positions, row.positions), (labels, row.labels)):
            tensor[i, :size] = torch.from_numpy(values)
        segments[i, :size] = torch.from_numpy(row.segments)
        asked = labels[i] != IGNORED
        questions[i, asked] = segments[i, asked] - 1 + count
        count += int(row.segments.max())
    one, other = segments[:, :, None], segments[:, None, :]
    mask = ((one == other) | ((other == 0) & (one >= 0))) & torch.ones(width, width, dtype=torch.bool).tril()
    pictures = [picture for row in rows for picture in row.pictures]
    seen = {"pixels": features.pixels(pictures)} if live else {"features": features.of(pictures)}
    return Batch(ids, positions, labels, mask[:, None], questions, **seen)


def micro_batches(rows: Sequence[Row], features: Features, live: bool = False) -> Iterator[Batch]:
    """Rows of similar length together, at most MOST_TOKENS of them."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if group and (len(group) + 1) * len(row.ids) > MOST_TOKENS:
            yield collated(group, features, live)
            group = []
        group.append(row)
    if group:
        yield collated(group, features, live)


def of_step(step: int, count: int, size: int, seed: int) -> list[int]:
    """Which of `count` rounds the optimiser step `step` (from 0) of `size` takes: seeded epochs, each in new order."""
    chosen: list[int] = []
    while len(chosen) < size:
        epoch, place = divmod(step * size + len(chosen), count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        chosen += order[place : place + size - len(chosen)].tolist()
    return chosen
