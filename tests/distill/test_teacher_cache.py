from __future__ import annotations

import pytest
import torch

from linmu.distill import sources
from linmu.distill.losses import TopK
from linmu.distill.run import distill
from linmu.distill.signals import LiveTeacher, Needs
from linmu.distill.teacher_cache import CachedTeacher, CacheKey, TeacherCache, decoder_arguments, front_fingerprint
from linmu.errors import InputError
from tests.distill.support import batch_of, dataset, pair, places, short_recipe, weights

EVERY = [
    Needs(layer=True),
    Needs(hidden=True, logits=True, top_k=4, temperature=2.0, decoder=True),
    Needs(logits=True, top_k=3, decoder=True),
    Needs(logits=True, decoder=True),
]


def key(**changes):
    settings = {"teacher": "t", "data": "d", "processor": "p", "loss_on": "answer", "precision": "float32"}
    return CacheKey(**{**settings, **changes})


def made(root, folder, needs=EVERY):
    student, teacher = pair(root)
    data, together = dataset(root)
    cache = TeacherCache(folder, key(), data, front_fingerprint(student))
    cache.build(teacher, needs, together)
    return cache, student, teacher


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl", "qwen3"])
def test_cached_signals_are_the_teachers(family, tmp_path_factory, tmp_path):
    root = places(family, tmp_path_factory)
    cache, student, teacher = made(root, tmp_path)
    assert not cache.missing(EVERY)
    batch = batch_of(root, [0, 17, 5])
    valid = batch["attention_mask"].bool()
    for needs in EVERY:
        live, cached = (s.signals(batch, needs) for s in (LiveTeacher(teacher), CachedTeacher(cache, student)))
        for name in ("layer_in", "layer_out", "hidden"):
            assert len(getattr(live, name)) == len(getattr(cached, name))
            for a, b in zip(getattr(live, name), getattr(cached, name), strict=True):
                torch.testing.assert_close(a[valid], b[valid], rtol=1e-3, atol=1e-4)
                assert not b[~valid].any()
        if isinstance(live.logits, TopK):
            assert torch.equal(live.logits.indices, cached.logits.indices)
            torch.testing.assert_close(live.logits.log_z, cached.logits.log_z, rtol=1e-4, atol=1e-4)
        elif live.logits is not None:
            torch.testing.assert_close(live.logits, cached.logits, rtol=1e-3, atol=1e-4)
        if needs.decoder:
            assert live.decoder.keys() == cached.decoder.keys()
    given, own = LiveTeacher(teacher).signals(batch, EVERY[3]).decoder, decoder_arguments(student, batch)
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(own[name], value)


def test_only_what_is_missing_is_made(tmp_path_factory, tmp_path, monkeypatch):
    root = places("qwen3", tmp_path_factory)
    cache, student, teacher = made(root, tmp_path, EVERY[:1])
    assert cache.missing(EVERY[:1]) == {} and cache.missing(EVERY[2:3]) == {"logits-3-1": [0, 1]}
    shards = sorted(tmp_path.rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in shards}
    assert [path.parent.name for path in shards] == ["layer", "layer"]  # 20 samples, 16 in a shard
    shards[1].unlink()
    calls, real = [], LiveTeacher.signals
    monkeypatch.setattr(LiveTeacher, "signals", lambda s, b, n: calls.append(b["sample_ids"]) or real(s, b, n))
    data, together = dataset(root)
    TeacherCache(tmp_path, key(), data, front_fingerprint(student)).build(teacher, EVERY[:1], together)
    assert [ids for (ids,) in calls] == [f"data.jsonl:{n}" for n in range(17, 21)]
    assert shards[0].stat().st_mtime_ns == before[shards[0]] and shards[1].is_file()


def test_processes_share_the_work(tmp_path_factory, tmp_path):
    root = places("qwen3", tmp_path_factory)
    student, teacher = pair(root)
    data, together = dataset(root)
    cache = TeacherCache(tmp_path, key(), data, front_fingerprint(student))
    cache.build(teacher, EVERY[:1], together, rank=1, world=2)
    assert cache.missing(EVERY[:1]) == {"layer": [0]}


def test_the_forecast_bounds_what_is_written(tmp_path_factory, tmp_path, monkeypatch):
    root = places("smolvlm", tmp_path_factory)
    student, teacher = pair(root)
    data, together = dataset(root)
    cache = TeacherCache(tmp_path, key(), data, front_fingerprint(student))
    for needs in ([EVERY[0]], [Needs(hidden=True)], [EVERY[2]]):
        before = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
        forecast = cache.forecast(teacher.config, needs)
        cache.build(teacher, needs, together)
        written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) - before
        assert written <= forecast + 10_000
        if not needs[0].logits:  # of logits only the answer's are kept, which the forecast does not know
            assert forecast <= written
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(InputError, match="too little space"):
        TeacherCache(tmp_path / "other", key(), data, "f").build(teacher, EVERY, together)


def test_other_models_and_data_have_other_folders(tmp_path_factory, tmp_path):
    root = places("qwen3", tmp_path_factory)
    assert len({key(**{name: "x"}).name for name in ("teacher", "data", "processor", "loss_on", "precision")}) == 5
    cache, student, _ = made(root, tmp_path, EVERY[:1])
    with torch.no_grad():
        student.get_input_embeddings().weight[3] += 1
    with pytest.raises(InputError, match="belongs to another student"):
        TeacherCache(tmp_path, key(), cache.data, front_fingerprint(student))


@pytest.mark.slow
def test_a_run_on_a_full_cache_needs_no_teacher(tmp_path_factory, tmp_path, monkeypatch):
    root, recipe = places("smolvlm", tmp_path_factory), short_recipe(steps=2)
    folders = [root / name for name in ("student", "teacher", "data")]
    options = {"recipe": recipe, "validation": root / "held", "say": lambda _: None}
    live = distill(*folders, tmp_path / "live", **options)
    distill(*folders, tmp_path / "first", cache=tmp_path / "cache", **options)
    monkeypatch.setattr(sources, "load_guide", lambda *_: pytest.fail("the teacher was loaded"))
    cached = distill(*folders, tmp_path / "second", cache=tmp_path / "cache", **options)
    for a, b in zip(live.stages, cached.stages, strict=True):
        assert b.last_loss == pytest.approx(a.last_loss, rel=1e-4)
        assert b.distance.kl == pytest.approx(a.distance.kl, rel=1e-3)
    found = [weights(tmp_path / name) for name in ("live", "first", "second")]
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], found[2][name])
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=1e-3)
