"""Steps, checkpoints, logs, shared weights: the small parts of a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from linmu.distill import logs
from linmu.distill.batches import LengthBuckets, Lengths
from linmu.distill.checkpoints import PARTIAL, last_checkpoint, load_trained, publish, save_trained
from linmu.distill.groups import set_trainable
from linmu.distill.logs import TRAINING_COLUMNS, VALIDATION_COLUMNS, CsvLog, EarlyStop, read_csv, stalled
from linmu.distill.lora import adapted_weights, add_adapters, merge_adapters
from linmu.distill.pair import check_folders, check_pair, own_memory, share_weights
from linmu.distill.plots import plot_stage
from linmu.distill.recipe import Lora, Stop
from linmu.distill.steps import Share, StepSampler
from linmu.errors import InputError
from tests.distill.support import pair, places
from tests.folders import teacher_folder

LENGTHS = Lengths(np.arange(50) % 17 + 3, np.arange(50) % 5)


def passes(batch, micro, world, steps=9):
    """Per step: the samples of every process and pass, as sorted tuples."""
    ranks = []
    for rank in range(world):
        share = Share.of(batch, micro, world, rank)
        sampler = StepSampler(LengthBuckets(LENGTHS, batch, seed=4, drop_last=True), steps, share)
        found = list(sampler)
        assert len(found) == len(sampler) == steps * share.passes
        assert all(len(part) == share.micro for part in found)
        ranks.append([sum(found[i * share.passes : (i + 1) * share.passes], []) for i in range(steps)])
    return [sorted(sum((rank[step] for rank in ranks), [])) for step in range(steps)]


def test_the_samples_of_a_step_do_not_depend_on_processes_and_passes():
    whole = passes(12, 0, 1)
    assert whole == passes(12, 3, 1) == passes(12, 0, 2) == passes(12, 2, 3)
    assert all(len(set(step)) == 12 for step in whole)
    for epoch in (whole[:4], whole[4:8]):
        assert len(set(sum(epoch, []))) == 48
    assert whole[:4] != whole[4:8]


def test_steps_that_cannot_be_shared_out():
    assert (Share.of(12, 0, 3, 0).micro, Share.of(12, 100, 3, 0).micro, Share.of(12, 2, 3, 0).passes) == (4, 4, 2)
    for arguments, word in (((10, 0, 4, 0), "multiple of 4"), ((12, 5, 1, 0), "divisor of 12")):
        with pytest.raises(InputError, match=word):
            Share.of(*arguments)


def write_partial(folder, step):
    (folder / PARTIAL / f"checkpoint-{step}").mkdir(parents=True)
    (folder / PARTIAL / f"checkpoint-{step}" / "file").write_text(str(step))


def test_a_checkpoint_counts_once_it_has_its_name(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (5, 10, 100):
        write_partial(tmp_path, step)
        assert last_checkpoint(tmp_path) is None or last_checkpoint(tmp_path).name != f"checkpoint-{step}"
        assert publish(tmp_path, step, keep=2).name == f"checkpoint-{step}"
        assert last_checkpoint(tmp_path).name == f"checkpoint-{step}"
    assert sorted(path.name for path in tmp_path.glob("checkpoint*")) == ["checkpoint-10", "checkpoint-100"]
    write_partial(tmp_path, 100)  # the same step again: a resumed run
    (tmp_path / PARTIAL / "checkpoint-100" / "file").write_text("new")
    publish(tmp_path, 100, keep=2)
    assert (tmp_path / "checkpoint-100" / "file").read_text() == "new"


def test_checkpoints_hold_trained_weights_only(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
    model[0].requires_grad_(False)
    save_trained(model, tmp_path)
    stored = load_file(tmp_path / "trained.safetensors")
    assert {name: tuple(value.shape) for name, value in stored.items()} == {"1.weight": (5, 3), "1.bias": (5,)}
    expected = model[1].weight.detach().clone()
    nn.init.zeros_(model[1].weight)
    load_trained(model, tmp_path)
    assert torch.equal(model[1].weight, expected)
    save_file({"1.weight": torch.zeros(5, 3)}, tmp_path / "trained.safetensors")
    with pytest.raises(InputError, match="another student or recipe"):
        load_trained(model, tmp_path)


def test_csv_rows_come_back_and_can_be_taken_back(tmp_path):
    log = CsvLog(tmp_path / "log.csv", TRAINING_COLUMNS)
    log.rewind(0)
    for step in (2, 4, 6):
        log.append({"step": step, "loss": 1 / step, "hidden": 3.0, "unknown": 1})
    assert read_csv(log.path)[1] == {"step": 4, "loss": 0.25, "hidden": 3.0}
    with log.path.open("a") as file:
        file.write("8,0.1")  # a kill in the middle of a line
    log.rewind(4)
    assert [row["step"] for row in read_csv(log.path)] == [2, 4]


def test_figures_go_to_tensorboard_where_it_is(tmp_path, monkeypatch):
    written = []
    board = SimpleNamespace(add_scalar=lambda *figure: written.append(figure), flush=lambda: None)
    monkeypatch.setattr(logs, "open_board", lambda folder, step: written.append((folder.name, step)) or board)
    log = CsvLog(tmp_path / "training.csv", TRAINING_COLUMNS)
    log.rewind(4)
    log.append({"step": 5, "loss": 0.5, "other": 1.0})
    assert written == [("tensorboard", 5), ("training/loss", 0.5, 5)]


def test_the_stop_rule():
    stop = Stop(patience=2, min_improvement=0.1)
    assert not stalled([3, 2, 1.9], Stop(patience=3))  # not enough to tell
    assert not stalled([3, 2.5, 2], stop) and not stalled([2, 3, 1.7], stop)
    assert stalled([2, 1.95, 1.9], stop) and not stalled([2, 1.95, 1.9], Stop(2))
    assert stalled([1, 2, 3], Stop(2))
    control = SimpleNamespace(should_training_stop=False)
    history = [{"loss": 1.0, "step": 1}, {"step": 1}, {"loss": 1.0, "step": 2}, {"loss": 1.0, "step": 3}]
    EarlyStop(stop).on_log(None, SimpleNamespace(log_history=history), control)
    assert control.should_training_stop


def test_curves(tmp_path):
    log, checks = CsvLog(tmp_path / "a.csv", TRAINING_COLUMNS), CsvLog(tmp_path / "b.csv", VALIDATION_COLUMNS)
    log.rewind(0)
    checks.rewind(0)
    with pytest.raises(InputError, match="no rows"):
        plot_stage(log.path, None, tmp_path / "a.png", "title")
    for step in (1, 2):
        log.append({"step": step, "loss": 2.0 / step})
        checks.append({"step": step, "kl": 1.0, "top1": 0.5})
    for name in ("a.png", "a.svg"):
        assert plot_stage(log.path, checks.path, tmp_path / name, "stage")
        first = (tmp_path / name).read_bytes()
        assert len(first) > 1000 and first[:4] in (b"\x89PNG", b"<?xm")
    with pytest.raises(InputError, match=".svg"):
        plot_stage(log.path, None, tmp_path / "a.gif", "title")


def test_equal_frozen_weights_use_the_teachers_memory(tmp_path_factory):
    student, teacher = pair(places("smolvlm", tmp_path_factory))
    trained = set_trainable(student, {"flex_inherited": 1.0, "mlp": 1.0})
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    saved = share_weights(student, teacher)
    assert saved > sum(w.numel() * 4 for w in teacher.base_model.vision_model.parameters())
    pointers = {weight.data_ptr() for weight in teacher.parameters()}
    assert not any(item.parameter.data_ptr() in pointers for item in trained)
    assert all(torch.equal(before[name], weight) for name, weight in student.named_parameters())
    set_trainable(student, {"output": 1.0})  # the next stage
    share_weights(student, teacher)
    owned = {name for name, weight in student.named_parameters() if weight.data_ptr() not in pointers}
    assert {name for name in owned if "o_proj" in name and "vision" not in name}
    assert not any(".mlp.down_proj" in name and "text_model" in name for name in owned)


def test_merging_adapters_leaves_the_teacher_alone(tmp_path_factory):
    student, teacher = pair(places("qwen2", tmp_path_factory))
    before = {name: weight.detach().clone() for name, weight in teacher.named_parameters()}
    adapters = add_adapters(student, Lora(rank=2, targets=("mlp", "output")), 0)
    for item in set_trainable(student, {"lora": 1.0}):
        nn.init.normal_(item.parameter)
    share_weights(student, teacher)
    weight = student.model.layers[1].mlp.up_proj.get_base_layer().weight
    assert weight.data_ptr() == teacher.model.layers[1].mlp.up_proj.weight.data_ptr()
    own_memory(adapted_weights(adapters), teacher)
    merge_adapters(adapters)
    assert all(torch.equal(before[name], weight) for name, weight in teacher.named_parameters())
    merged = student.model.layers[1].mlp.up_proj.weight
    assert not torch.equal(merged, teacher.model.layers[1].mlp.up_proj.weight)


def test_pairs_that_do_not_belong_together(tmp_path_factory, tmp_path):
    root = places("qwen2", tmp_path_factory)
    student, teacher = pair(root)
    check_pair(student, teacher)
    with torch.no_grad():
        teacher.model.layers[0].mlp.up_proj.weight.mul_(2)  # a decoder that was trained further is no reason
        check_pair(student, teacher)
        teacher.model.embed_tokens.weight.mul_(2)
    with pytest.raises(InputError, match="embed_tokens.weight has other values"):
        check_pair(student, teacher)
    del teacher.model.layers[2]
    with pytest.raises(InputError, match="differs"):
        check_pair(student, teacher)
    check_folders(root / "student", root / "teacher")
    with pytest.raises(InputError, match="another family; got llama; expected qwen2"):
        check_folders(root / "student", teacher_folder("llama", tmp_path / "llama"))
    with pytest.raises(InputError, match="is not a student"):
        check_folders(root / "teacher", root / "teacher")
