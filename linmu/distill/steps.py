"""Which samples every process sees in which pass: whole steps are planned for all processes, then shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Sampler

from linmu.distill.batches import LengthBuckets, SampleDataset
from linmu.errors import InputError


@dataclass(frozen=True)
class Share:
    """How a step's `batch` samples are split: `world` processes, each `passes` passes of `micro` samples."""

    batch: int
    world: int
    rank: int
    micro: int

    @property
    def passes(self) -> int:
        """Gradient accumulation steps."""
        return self.batch // (self.world * self.micro)

    @classmethod
    def of(cls, batch: int, micro: int, world: int, rank: int) -> Share:
        """The split of a recipe (micro 0 = all at once); raises InputError when the samples do not divide evenly."""
        if batch % world:
            raise InputError(
                f"batch_size {batch} on {world} processes",
                expected=f"a multiple of {world}",
                fix="--set batch_size=...",
            )
        micro = min(micro, batch // world) or batch // world
        if batch % (world * micro):
            raise InputError(
                f"micro_batch {micro} on {world} processes",
                expected=f"a divisor of {batch // world}",
                fix="--set micro_batch=...",
            )
        return cls(batch, world, rank, micro)


class StepSampler(Sampler[list[int]]):
    """The passes of one process: every step takes one batch of `buckets`, epoch after epoch.

    The samples of a step depend on seed and step only, not on the number of processes or passes. Passes hold samples
    of similar length, at the same time on all processes.
    """

    def __init__(self, buckets: LengthBuckets, steps: int, share: Share):
        self.buckets, self.steps, self.share = buckets, steps, share

    def __len__(self) -> int:
        """Passes of this process in the whole stage."""
        return self.steps * self.share.passes

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of `micro` sample numbers."""
        share, remaining, epoch = self.share, self.steps, 0
        while remaining:
            self.buckets.set_epoch(epoch)
            for batch in self.buckets:
                for turn in range(share.passes):
                    start = (turn * share.world + share.rank) * share.micro
                    yield batch[start : start + share.micro]
                remaining -= 1
                if not remaining:
                    return
            epoch += 1


def step_loader(
    data: SampleDataset, collate: Callable[[list], dict[str, Any]], share: Share, steps: int, seed: int, workers: int
) -> DataLoader:
    """Collated passes of a whole stage for one process; raises InputError when the data fills no batch."""
    if len(data) < share.batch:
        raise InputError(
            "too few samples for one step",
            got=len(data),
            expected=f"at least batch_size, {share.batch}",
            fix=f"--set batch_size={share.world * (len(data) // share.world) or 1}",
        )
    buckets = LengthBuckets(data.lengths, share.batch, seed, drop_last=True)
    sampler = StepSampler(buckets, steps, share)
    return DataLoader(
        data, batch_sampler=sampler, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0
    )
