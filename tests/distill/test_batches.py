from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from torch.utils.data import DataLoader

from linmu.distill import batches
from linmu.distill.batches import LengthBuckets, Lengths, SampleDataset
from linmu.errors import InputError
from linmu.formats.data_folder import DataFolder, write_data_folder
from linmu.layout import PromptRules
from linmu.model.batch import IGNORED, collate
from linmu.model.hf_inputs import hf_inputs
from linmu.processing.encode import encode_sample
from tests.distill.samples import family_data
from tests.model.students import fresh_student
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_model

PAD = 5  # any token: it must not matter
EOS = 2


def rules_of(model, family) -> PromptRules | None:
    return PromptRules.from_config(model.config.to_dict()) if family in VISION_NAMES else None


def forward(model, batch, student: bool):
    extra = ("labels", "sample_ids") if student else ("labels", "sample_ids", "linmu_media")
    with torch.inference_mode():
        return model(**{key: value for key, value in batch.items() if key not in extra}).logits


@pytest.mark.parametrize("who", ["teacher", "student"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_batch_gives_the_logits_of_its_samples(family, who, tmp_path_factory):
    processor, data = family_data(family, tmp_path_factory)
    teacher, _ = tiny_model(family)
    # a student of its own: Qwen models keep what the last batch told about positions
    model = fresh_student(family, "image" if family in VISION_NAMES else None)[0] if who == "student" else teacher
    rules = rules_of(teacher, family)
    encoded = [encode_sample(sample, processor) for sample in data.samples]
    assert len({item.tokens for item in encoded}) == len(encoded)
    orders = [[0, 1, 2], [2, 0, 1]] + [[3, 2, 1, 0]] * (family in VISION_NAMES)
    alone = [forward(model, hf_inputs(item.inputs, rules), who == "student")[0] for item in encoded]
    for order in orders:
        batch = collate([encoded[i] for i in order], rules, PAD)
        logits = forward(model, batch, who == "student")
        for row, i in zip(logits, order, strict=True):
            torch.testing.assert_close(row[-encoded[i].tokens :], alone[i], rtol=0, atol=2e-4)
    # and the pictures matter: another sample's would not give the same
    if family in VISION_NAMES:
        other = copy.copy(batch)
        other["pixel_values"] = batch["pixel_values"].flip(-1)
        assert (forward(model, other, who == "student") - logits).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_labels_are_the_answers(family, tmp_path_factory):
    processor, data = family_data(family, tmp_path_factory)
    encoded = [encode_sample(sample, processor) for sample in data.samples]
    batch = collate(encoded, rules_of(tiny_model(family)[0], family), PAD)
    assert batch["sample_ids"] == [sample.id for sample in data.samples]
    assert batch["labels"].shape == batch["input_ids"].shape == batch["attention_mask"].shape
    for row, sample in enumerate(data.samples):
        labels, ids = batch["labels"][row], batch["input_ids"][row]
        counted = labels != IGNORED
        assert processor.decode(labels[counted].tolist()).strip() == sample.answer
        assert torch.equal(labels[counted], ids[counted]) and labels[-1] == EOS
        length = encoded[row].tokens
        assert batch["attention_mask"][row].tolist() == [0] * (len(ids) - length) + [1] * length
        assert (ids[: len(ids) - length] == PAD).all() and not counted[: len(ids) - length].any()


@pytest.mark.parametrize("family", VISION_NAMES)
def test_shapes_of_media(family, tmp_path_factory):
    processor, data = family_data(family, tmp_path_factory)
    encoded = [encode_sample(sample, processor) for sample in data.samples]
    rules = rules_of(tiny_model(family)[0], family)
    batch = collate(encoded, rules, PAD)
    counts = [sum(len(call["pixel_values"]) for call in item.inputs.vision_calls) for item in encoded]
    if family in ("smolvlm", "idefics3"):
        assert batch["pixel_values"].shape[:2] == (4, max(counts))
        real = batch["pixel_values"].flatten(2).any(2)
        assert real.sum(1).tolist() == counts
    elif family in ("qwen2_5_vl", "qwen3_vl"):
        assert batch["image_grid_thw"].shape == (2, 3) and batch["video_grid_thw"].shape == (1, 3)
        assert len(batch["pixel_values"]) == batch["image_grid_thw"].prod(1).sum()
        assert batch["mm_token_type_ids"].shape == batch["input_ids"].shape
        assert ("second_per_grid_ts" in batch) == (family == "qwen2_5_vl")
    else:
        assert len(batch["pixel_values"]) == sum(counts)
    assert ("linmu_media" in batch) == (family in ("smolvlm", "internvl"))
    if "linmu_media" in batch:
        assert batch["linmu_media"] == [item.inputs.media for item in encoded]
    text = collate([encoded[0], encoded[3]], rules, PAD)
    assert set(text) == {"input_ids", "attention_mask", "labels", "sample_ids"}
    assert ("linmu_media" in collate(encoded[:2], rules, PAD)) is False


def test_a_picture_that_looks_like_padding_is_refused(tmp_path_factory):
    processor, data = family_data("smolvlm", tmp_path_factory)
    item = encode_sample(data.samples[1], processor)
    (call,) = item.inputs.vision_calls
    call["pixel_values"][1] = 0
    with pytest.raises(InputError, match="one: a picture is zero all over"):
        collate([item], rules_of(tiny_model("smolvlm")[0], "smolvlm"))


def counted_progress():
    calls = []
    return calls, lambda done, total: calls.append((done, total))


def test_a_dataset_encodes_lazily(tmp_path_factory, monkeypatch):
    processor, data = family_data("smolvlm", tmp_path_factory)
    seen = []

    def spy(sample, *rest):
        seen.append(sample.id)
        return encode_sample(sample, *rest)

    monkeypatch.setattr(batches, "encode_sample", spy)
    calls, progress = counted_progress()
    dataset = SampleDataset(data, processor, max_tokens=500, progress=progress)
    assert len(dataset) == 4 and seen == []
    assert dataset[2].id == "two" and seen == ["two"]
    lengths = dataset.lengths
    assert calls == [(n, 4) for n in (1, 2, 3, 4)] and len(seen) == 5
    assert lengths is dataset.lengths and dataset.skipped == 0 and len(seen) == 5
    encoded = [encode_sample(sample, processor) for sample in data.samples]
    assert lengths.tokens.tolist() == [item.tokens for item in encoded]
    assert lengths.vision.tolist() == [item.vision_tokens for item in encoded]
    assert lengths.vision[0] == 0 < lengths.vision[1]
    dataset = pickle.loads(pickle.dumps(SampleDataset(data, processor, loss_on="all")))
    assert dataset[0].answer_mask.sum() == dataset[0].tokens - 1


def test_samples_that_are_too_long(tmp_path_factory):
    processor, data = family_data("llava", tmp_path_factory)
    tokens = SampleDataset(data, processor).lengths.tokens
    limit = int(np.sort(tokens)[1])
    dataset = SampleDataset(data, processor, max_tokens=limit, too_long="skip")
    assert len(dataset) == 2 and dataset.skipped == 2
    assert dataset.lengths.tokens.tolist() == tokens[tokens <= limit].tolist()
    assert [dataset[i].tokens for i in range(2)] == dataset.lengths.tokens.tolist()
    strict = SampleDataset(data, processor, max_tokens=limit)
    first = data.samples[int(np.argmax(tokens > limit))]
    with pytest.raises(InputError, match=f"id '{first.id}'.* has too many tokens .2 of 4 samples have.*{limit}"):
        strict.lengths  # noqa: B018
    with pytest.raises(InputError, match="too many tokens"):
        strict[int(np.argmax(tokens))]
    with pytest.raises(InputError, match="every sample"):
        len(SampleDataset(data, processor, max_tokens=3, too_long="skip"))
    with pytest.raises(InputError, match="too_long"):
        SampleDataset(data, processor, too_long="cut")


def test_lengths_are_cached_for_the_same_data_and_processor(tmp_path, tmp_path_factory):
    processor, data = family_data("llama", tmp_path_factory)
    expected = SampleDataset(data, processor).lengths
    cache = tmp_path / "cache"

    def lengths(processor=processor, data=data):
        calls, progress = counted_progress()
        found = SampleDataset(data, processor, cache=cache, progress=progress).lengths
        return found, len(calls)

    assert lengths()[1] == 3
    found, calls = lengths()
    assert calls == 0 and found.tokens.tolist() == expected.tokens.tolist() and len(list(cache.iterdir())) == 1
    assert found.vision.tolist() == expected.vision.tolist()
    assert lengths(processor=replace(processor, chat_template=" " + processor.chat_template))[1] == 3
    write_data_folder(tmp_path / "data", [({"prompt": "a", "answer": "b"}, {})])
    assert lengths(data=DataFolder.open(tmp_path / "data"))[1] == 1
    for content in (b"", b"[1]", json.dumps({"tokens": [1], "vision": [1]}).encode(), b'{"tokens": ["x"]}'):
        for path in cache.iterdir():
            path.write_bytes(content)
        assert lengths()[1] == 3


def buckets(samples=103, size=4, **options) -> LengthBuckets:
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 400, samples)
    return LengthBuckets(Lengths(tokens, rng.integers(0, 300, samples)), size, **options)


def test_buckets_hold_every_sample_once_and_differ_by_seed_and_epoch():
    sampler = buckets(seed=3)
    first = list(sampler)
    assert first == list(sampler) == list(buckets(seed=3)) != list(buckets(seed=4))
    assert sorted(i for batch in first for i in batch) == list(range(103))
    assert len(first) == len(sampler) == 26 and [len(batch) for batch in first] == [4] * 25 + [3]
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first and {tuple(batch) for batch in first} != {tuple(batch) for batch in second}
    assert set(second[-1]) != set(first[-1])  # not always the same samples are left over
    dropped = list(buckets(seed=3, drop_last=True))
    assert dropped == first[:-1] and len(buckets(seed=3, drop_last=True)) == 25
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_buckets_save_padding_and_stay_shuffled():
    sampler = buckets(samples=2003, size=8)
    tokens = sampler.lengths.tokens

    def padding(batches):
        return sum(max(tokens[b]) * len(b) - sum(tokens[b]) for b in batches) / tokens.sum()

    order = np.random.default_rng(1).permutation(2003)
    assert padding(sampler) < 0.1 * padding([order[i : i + 8] for i in range(0, 2003, 8)])
    means = [tokens[batch].mean() for batch in sampler]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    same = Lengths(np.full(60, 7), np.arange(60)[::-1] % 3)  # of one length: those with like pictures together
    assert all(len(set(same.vision[batch])) == 1 for batch in LengthBuckets(same, 5))


def test_few_samples():
    assert sorted(next(iter(buckets(samples=3)))) == [0, 1, 2] and len(buckets(samples=3)) == 1
    assert len(list(buckets(samples=4))) == 1
    for options in ({"samples": 3, "drop_last": True}, {"size": 0}, {"pool": 0}):
        with pytest.raises(InputError):
            buckets(**options)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_accelerate_gives_every_process_as_many_full_batches(processes, drop_last):
    sampler = buckets(seed=1, drop_last=drop_last)
    shards = [list(BatchSamplerShard(sampler, processes, rank)) for rank in range(processes)]
    assert len({len(shard) for shard in shards}) == 1
    assert {len(batch) for shard in shards for batch in shard} == {4}
    seen = [i for shard in shards for batch in shard for i in batch]
    if drop_last:
        assert len(seen) == len(set(seen)) == 25 // processes * processes * 4
    else:
        assert set(seen) == set(range(103)) and len(seen) < 103 + 4 * processes
    steps = zip(*shards, strict=True)  # one process or several: the same samples in a step, in the same order
    flat = list(sampler)
    for number, step in enumerate(list(steps)[: 25 // processes]):
        assert list(step) == flat[number * processes : (number + 1) * processes]


def test_accelerate_hands_on_the_epoch():
    flat = buckets()
    flat.set_epoch(2)
    for processes in (1, 2):
        loader = DataLoader(range(103), batch_sampler=buckets(), collate_fn=list)
        prepared = prepare_data_loader(
            loader, num_processes=processes, process_index=processes - 1, put_on_device=False, rng_types=[]
        )
        prepared.set_epoch(2)
        prepared.iteration = 2
        assert list(prepared)[:3] == list(flat)[processes - 1 :: processes][:3]


def test_a_loader_with_workers_gives_whole_batches(tmp_path_factory):
    processor, data = family_data("internvl", tmp_path_factory)
    rules = rules_of(tiny_model("internvl")[0], "internvl")
    dataset = SampleDataset(data, processor)
    sampler = LengthBuckets(dataset.lengths, 2, seed=5)
    loader = DataLoader(
        dataset, batch_sampler=sampler, collate_fn=partial(collate, rules=rules, pad_id=PAD), num_workers=1
    )
    found = list(loader)
    assert [batch["sample_ids"] for batch in found] == [[data.samples[i].id for i in b] for b in sampler]
    assert sum(len(batch["pixel_values"]) for batch in found if "pixel_values" in batch) > 5
