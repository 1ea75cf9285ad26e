"""Batches: a dataset that encodes lazily, batches of similar length, and what a teacher's forward takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch.utils.data import BatchSampler, Dataset

from linmu.errors import InputError
from linmu.files.atomic import write_bytes
from linmu.formats.data_folder import DataFolder
from linmu.formats.data_line import Sample
from linmu.processing import Processor
from linmu.processing.encode import EncodedSample, encode_sample, processor_fingerprint

TOO_LONG = ("error", "skip")
CACHE_VERSION = 1
POOL_BATCHES = 64  # lengths are sorted within so many batches: enough to save padding, few enough to stay random


@dataclass(frozen=True)
class Lengths:
    """Of every sample: `tokens` [n] int64 of prompt and answer, `vision` [n] int64: those that stand for pixels."""

    tokens: np.ndarray
    vision: np.ndarray


class SampleDataset(Dataset[EncodedSample]):
    """The samples of a data folder, encoded when they are asked for.

    `lengths` encodes every sample once, calling `progress(done, total)`; with `cache` (a folder) it is kept there for
    the same data and processor. Samples of more than `max_tokens` tokens are an InputError (too_long="error", naming
    the first) or left out and counted in `skipped` ("skip"; `len` then needs the lengths).
    """

    def __init__(
        self,
        folder: DataFolder,
        processor: Processor,
        *,
        loss_on: str = "answer",
        max_tokens: int | None = None,
        too_long: str = "error",
        cache: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        if too_long not in TOO_LONG:
            raise InputError("too_long", got=repr(too_long), expected="one of " + ", ".join(TOO_LONG))
        self.folder, self.processor, self.loss_on = folder, processor, loss_on
        self.max_tokens, self.too_long, self.cache, self._progress = max_tokens, too_long, cache, progress

    def __len__(self) -> int:
        """Samples that are not left out."""
        return len(self.samples)

    def __getitem__(self, index: int) -> EncodedSample:
        """One sample; raises InputError naming it."""
        return encode_sample(self.samples[index], self.processor, self.loss_on, self.max_tokens)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples that are not left out, in the order of the file."""
        if self.max_tokens is None or self.too_long == "error":
            return self.folder.samples
        return self._fitting[0]

    @property
    def skipped(self) -> int:
        """Samples left out because they have too many tokens."""
        return len(self.folder) - len(self._fitting[0])

    @property
    def lengths(self) -> Lengths:
        """Lengths of `samples`; raises InputError for a sample that cannot be encoded or is too long."""
        return self._fitting[1]

    @cached_property
    def _fitting(self) -> tuple[tuple[Sample, ...], Lengths]:
        lengths = _measure(self.folder, self.processor, self.cache, self._progress)
        self._progress = None  # it may not survive the way to a worker process
        if self.max_tokens is None:
            return self.folder.samples, lengths
        fits = lengths.tokens <= self.max_tokens
        if self.too_long == "error" and not fits.all():
            worst = int(np.argmin(fits))
            raise InputError(
                f"{self.folder.samples[worst].place} has too many tokens ({np.sum(~fits)} of {len(fits)} samples have)",
                got=lengths.tokens[worst],
                expected=f"at most {self.max_tokens}",
                fix=f"allow {lengths.tokens.max()}, or leave long samples out",
            )
        if not fits.any():
            raise InputError(
                f"every sample of {self.folder.folder} has more than {self.max_tokens} tokens",
                got=f"{lengths.tokens.min()} or more",
            )
        samples = tuple(sample for sample, fit in zip(self.folder.samples, fits, strict=True) if fit)
        return samples, Lengths(lengths.tokens[fits], lengths.vision[fits])


def _measure(
    folder: DataFolder, processor: Processor, cache: Path | None, progress: Callable[[int, int], None] | None
) -> Lengths:
    """Lengths of all samples, from the cache where it has them."""
    path = None if cache is None else Path(cache) / f"lengths-{_cache_key(folder, processor)}.json"
    if path is not None and (lengths := _read_lengths(path, len(folder))) is not None:
        return lengths
    pairs = []
    for done, sample in enumerate(folder.samples, 1):
        encoded = encode_sample(sample, processor)
        pairs.append((encoded.tokens, encoded.vision_tokens))
        if progress is not None:
            progress(done, len(folder))
    table = np.array(pairs, np.int64)
    if path is not None:
        write_bytes(path, json.dumps({"tokens": table[:, 0].tolist(), "vision": table[:, 1].tolist()}).encode())
    return Lengths(table[:, 0], table[:, 1])


def _cache_key(folder: DataFolder, processor: Processor) -> str:
    parts = [CACHE_VERSION, folder.fingerprint, processor_fingerprint(processor)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _read_lengths(path: Path, samples: int) -> Lengths | None:
    """Cached lengths, or None where there are none that fit."""
    try:
        data = json.loads(path.read_bytes())
        tokens, vision = (np.array(data[name], np.int64) for name in ("tokens", "vision"))
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
    return Lengths(tokens, vision) if tokens.shape == vision.shape == (samples,) else None


class LengthBuckets(BatchSampler):
    """Batches of sample numbers of similar length, the same for the same seed and epoch.

    Every epoch is a new permutation, sorted by tokens (then vision tokens) within pools of `pool` batches; then the
    batches are shuffled. The samples that fill no batch are the permutation's last: a short last batch, or none
    (drop_last). accelerate shards it evenly and hands on `set_epoch`.
    """

    def __init__(
        self, lengths: Lengths, batch_size: int, seed: int = 0, drop_last: bool = False, pool: int = POOL_BATCHES
    ):
        if batch_size < 1 or pool < 1:
            raise InputError("batch_size and pool", got=f"{batch_size} and {pool}", expected="at least 1")
        if drop_last and len(lengths.tokens) < batch_size:
            raise InputError("samples", got=len(lengths.tokens), expected=f"at least {batch_size}, one batch")
        self.lengths, self.batch_size, self.seed, self.drop_last, self.pool = (
            lengths,
            batch_size,
            seed,
            drop_last,
            pool,
        )
        self.epoch = 0

    @property
    def sampler(self) -> LengthBuckets:
        """Itself: where accelerate's shards look for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        """Batches of an epoch."""
        samples = len(self.lengths.tokens)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of `batch_size` sample numbers."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.lengths.tokens))
        full = len(order) // self.batch_size * self.batch_size
        step = self.pool * self.batch_size
        pools = [self._sorted(order[low : min(low + step, full)]) for low in range(0, full, step)]
        batches = np.concatenate(pools).reshape(-1, self.batch_size) if pools else np.zeros((0, self.batch_size), int)
        yield from batches[rng.permutation(len(batches))].tolist()
        if full < len(order) and not self.drop_last:
            yield order[full:].tolist()

    def _sorted(self, numbers: np.ndarray) -> np.ndarray:
        keys = (self.lengths.vision[numbers], self.lengths.tokens[numbers])
        return numbers[np.lexsort(keys)]
