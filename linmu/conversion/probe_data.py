"""A user's data folder as probe prompts: few samples, taken evenly, with pictures where the teacher has a tower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.families import Family
from linmu.formats.data_folder import DataFolder
from linmu.formats.data_line import Sample
from linmu.layout import PromptRules
from linmu.model.batch import collate
from linmu.processing import Processor
from linmu.processing.encode import EncodedSample, encode_sample

SAMPLES = 16
TOKENS = 4096  # of all samples together
NOT_FORWARDS = ("attention_mask", "labels", "sample_ids")  # of a batch: one row has no padding and learns nothing


@dataclass(frozen=True)
class ProbeData:
    """Prompts from `used` of `samples` lines, `tokens` in all."""

    prompts: list[dict[str, Any]]
    samples: int
    tokens: int

    @property
    def used(self) -> int:
        """Samples that are read."""
        return len(self.prompts)


def open_probe(path: Path | str, family: Family) -> DataFolder:
    """The data folder, every line checked; raises InputError for a wrong one, or for no picture where a tower is."""
    data = DataFolder.open(path, need_answers=False)
    if not family.text_only and all(sample.text_only for sample in data.samples):
        raise InputError(
            f"the probe {data.folder} has no picture",
            got=f"{len(data)} samples of text alone",
            expected="samples with pictures or videos among them, for a model that has a vision tower",
        )
    return data


def data_probes(data: DataFolder, processor: Processor, rules: PromptRules | None) -> ProbeData:
    """Arguments of the teacher's forward on at most SAMPLES samples and TOKENS tokens, at even distances.

    Those with pictures come first, so that some are always among them; an answer is read with its prompt. `rules` are
    the model's PromptRules (None: text only). Raises InputError naming the line of a sample that cannot be encoded,
    or when none with pictures (none at all) is short enough.
    """
    ordered = sorted(data.samples, key=lambda sample: sample.text_only)
    taken = [(sample, _encoded(sample, processor)) for sample in _evenly(ordered, SAMPLES)]
    fitting = [(sample, encoded) for sample, encoded in taken if encoded.tokens <= TOKENS]
    if not fitting or (rules is not None and fitting[0][0].text_only):
        shortest = min(encoded.tokens for sample, encoded in taken if rules is None or not sample.text_only)
        kind = "sample" if rules is None else "sample with pictures"
        raise InputError(
            f"no {kind} of the probe {data.folder} is short enough",
            got=f"{shortest} tokens or more in the {len(taken)} that were looked at",
            expected=f"at most {TOKENS}",
        )
    thinned = ([encoded for _, encoded in _evenly(fitting, count)] for count in range(len(fitting), 0, -1))
    chosen = next(part for part in thinned if sum(encoded.tokens for encoded in part) <= TOKENS)
    batches = [collate([encoded], rules) for encoded in chosen]
    prompts = [{name: value for name, value in batch.items() if name not in NOT_FORWARDS} for batch in batches]
    return ProbeData(prompts, len(data), sum(encoded.tokens for encoded in chosen))


def _encoded(sample: Sample, processor: Processor) -> EncodedSample:
    if sample.answer or sample.text_only:
        return encode_sample(sample, processor)
    try:
        inputs = processor.encode(sample.prompt, sample.images, sample.video, sample.video_fps)
    except InputError as error:
        raise InputError(
            f"{sample.place}: {error.what}", got=error.got, expected=error.expected, fix=error.fix
        ) from error
    return EncodedSample(sample.id, inputs, np.zeros(len(inputs.input_ids), bool))


def _evenly(items: list, count: int) -> list:
    """At most `count` of the items, the first always."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places]
