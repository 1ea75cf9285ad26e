"""Signals and losses of a padded batch against each sample alone, computed the plain way."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from linmu.distill import objective as module
from linmu.distill.groups import set_trainable
from linmu.distill.losses import FLOOR
from linmu.distill.objective import Objective
from linmu.distill.signals import LiveTeacher, Needs, label_rows, model_inputs, next_labels
from linmu.model.modeling import decoder_layers
from tests.distill.support import a_stage, batch_of, pair, places
from tests.tiny import FAMILY_NAMES

ALL = Needs(layer=True, hidden=True, logits=True, decoder=True)
COUNTS = torch.tensor([10.0, 4.0])
FAMILIES = tuple(family for family in FAMILY_NAMES if family != "llava_dinov2")


def layers_of(model: PreTrainedModel, call) -> tuple[list, list]:
    """(attention outputs, hidden states) of every layer while call() runs."""
    attention, hidden, handles = [], [], []
    for layer in decoder_layers(model):
        handles.append(layer.self_attn.register_forward_hook(lambda _, __, out: attention.append(out[0])))
        handles.append(layer.register_forward_hook(lambda _, __, out: hidden.append(out)))
    call()
    for handle in handles:
        handle.remove()
    return attention, hidden


def error_sum(student: torch.Tensor, target: torch.Tensor) -> float:
    """Of one unpadded sample [1,S,D]."""
    s, t = student[0].double(), target[0].double()
    energy = (t**2).sum(-1)
    scale = torch.clamp(energy, min=FLOOR * float(energy.log().mean().exp()))
    return float((((s - t) ** 2).sum(-1) / scale).sum())


@torch.no_grad()
def plain_sums(student, teacher, batch) -> dict[str, float]:
    """Sums of all student-forced losses over the samples of a padded batch, each on its own."""
    arguments = model_inputs(batch) | ({"linmu_media": batch["linmu_media"]} if "linmu_media" in batch else {})
    theirs = teacher(**model_inputs(batch), use_cache=False)
    _, their_hidden = layers_of(teacher, lambda: teacher(**model_inputs(batch), use_cache=False))
    ours = student(**arguments, use_cache=False)
    _, our_hidden = layers_of(student, lambda: student(**arguments, use_cache=False))
    sums = {"hidden": 0.0, "logits": 0.0, "ce": 0.0, "agree": 0.0}
    for row, mask in enumerate(batch["attention_mask"].bool()):
        for s, t in zip(our_hidden, their_hidden, strict=True):
            sums["hidden"] += error_sum(s[row : row + 1, mask], t[row : row + 1, mask]) / len(our_hidden)
        for place in range(batch["labels"].shape[1] - 1):
            if (label := int(batch["labels"][row, place + 1])) != -100:
                q, p = ours.logits[row, place].double().softmax(-1), theirs.logits[row, place].double().softmax(-1)
                sums["logits"] += float((p * (p / q).log()).sum())
                sums["ce"] -= float(q[label].log())
                sums["agree"] += float(q.argmax() == p.argmax())
    return sums


@pytest.mark.parametrize("family", FAMILIES)
def test_own_losses_are_those_of_two_whole_models(family, tmp_path_factory):
    root = places(family, tmp_path_factory)
    student, teacher = pair(root)
    batch = batch_of(root, [0, 1, 5])
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 1, "nothing is padded"
    expected = plain_sums(student, teacher, batch)
    signals = LiveTeacher(teacher).signals(batch, ALL)
    stage = a_stage({"hidden": 0.5, "logits": 2.0, "ce": 0.25})
    with torch.no_grad():
        found = Objective(student, stage)(batch, signals, COUNTS)
        measured = Objective(student, stage)(batch, signals)
    for name, count in (("hidden", 10.0), ("logits", 4.0), ("ce", 4.0)):
        assert found[name].item() == pytest.approx(expected[name] / count, rel=2e-4), name
    total = 0.5 * found["hidden"] + 2 * found["logits"] + 0.25 * found["ce"]
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert measured["kl"].item() == pytest.approx(expected["logits"], rel=2e-4)
    assert measured["hidden"].item() == pytest.approx(expected["hidden"], rel=2e-4)
    assert measured["agree"] == expected["agree"] and measured["samples"] == 3
    assert measured["rows"] == len(next_labels(batch["labels"])) and measured["tokens"] == batch["attention_mask"].sum()


@pytest.mark.parametrize("family", ["smolvlm", "qwen3_vl", "qwen2"])
def test_layer_loss_is_every_mixer_on_the_teachers_input(family, tmp_path_factory):
    root = places(family, tmp_path_factory)
    student, teacher = pair(root)
    expected = 0.0
    for number in (1, 5):  # each alone, so without padding
        batch = batch_of(root, [number])
        layout = student.layout_tensors(batch["input_ids"], None, batch.get("linmu_media"), batch)
        seen = LiveTeacher(teacher).signals(batch, ALL)
        outputs, _ = layers_of(teacher, lambda batch=batch: teacher(**model_inputs(batch), use_cache=False))
        for layer, u, target in zip(decoder_layers(student), seen.layer_in, outputs, strict=True):
            with torch.no_grad():
                y, _ = layer.self_attn(u, seen.position_embeddings, linmu_layout=layout)
            expected += error_sum(y, target) / len(outputs)
    batch = batch_of(root, [1, 5])
    signals = LiveTeacher(teacher).signals(batch, Needs(layer=True))
    assert not signals.hidden and signals.logits is None
    found = Objective(student, a_stage({"layer": 3.0}))(batch, signals, COUNTS)
    assert found["layer"].item() == pytest.approx(expected / 10, rel=2e-4)
    assert found["loss"].item() == pytest.approx(3 * found["layer"].item(), rel=1e-6)


def gradients(root, losses, numbers, checkpointed=False) -> dict[str, torch.Tensor]:
    """Summed over batches, of a stage that trains flex and swin."""
    student, teacher = pair(root)
    trained = set_trainable(student, {"flex_new": 1.0, "swin": 1.0})
    if checkpointed:
        student.activation_checkpointing_enable()
    objective, source = Objective(student, a_stage(losses), checkpointed).train(), LiveTeacher(teacher)
    for some in numbers:
        batch = batch_of(root, some)
        objective(batch, source.signals(batch, Needs.of(objective.stage, 0)), COUNTS)["loss"].backward()
    others = [n for n, w in student.named_parameters() if w.grad is not None and n not in {t.name for t in trained}]
    assert not others
    return {item.name: item.parameter.grad for item in trained if item.parameter.grad is not None}


@pytest.mark.parametrize("losses", [{"layer": 1.0}, {"hidden": 1.0, "logits": 1.0}], ids=["layer", "own"])
def test_splitting_a_batch_or_checkpointing_changes_no_gradient(losses, tmp_path_factory):
    root = places("smolvlm", tmp_path_factory)
    whole = gradients(root, losses, [[0, 1, 5]])
    assert len(whole) > 10 and all(g.abs().max() > 0 for g in whole.values())
    for other in (gradients(root, losses, [[5], [0, 1]]), gradients(root, losses, [[0, 1, 5]], checkpointed=True)):
        assert other.keys() == whole.keys()
        for name, expected in whole.items():
            assert (other[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-9, name


@pytest.mark.parametrize("top_k", [0, 7])
def test_rows_done_in_pieces_give_the_same(top_k, tmp_path_factory, monkeypatch):
    root = places("qwen3", tmp_path_factory)
    student, teacher = pair(root)
    set_trainable(student, {"output": 1.0})
    batch, stage = batch_of(root, [0, 1, 2]), a_stage({"logits": 1.0, "ce": 0.5})
    signals = LiveTeacher(teacher).signals(batch, Needs.of(stage, top_k))
    found, grads = [], []
    for elements in (2**25, 3 * 261):  # all rows at once; three rows at a time
        monkeypatch.setattr(module, "ROW_ELEMENTS", elements)
        student.zero_grad()
        parts = Objective(student, stage)(batch, signals, COUNTS)
        parts["loss"].backward()
        found.append(parts["loss"].item())
        grads.append(student.model.layers[0].self_attn.o_proj.weight.grad.clone())
    assert len(label_rows(batch["labels"])) > 3
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert (grads[0] - grads[1]).norm() <= 1e-4 * grads[1].norm()


def test_pictures_go_through_the_vision_tower_once(tmp_path_factory):
    root = places("smolvlm", tmp_path_factory)
    student, teacher = pair(root)
    calls = []
    for name, model in (("teacher", teacher), ("student", student)):
        tower = model.base_model.vision_model
        tower.register_forward_hook(lambda *_, name=name: calls.append(name))
    batch = batch_of(root, [1, 5])
    signals = LiveTeacher(teacher).signals(batch, ALL)
    Objective(student, a_stage({"layer": 1.0, "hidden": 1.0, "logits": 1.0}))(batch, signals, COUNTS)
    assert calls == ["teacher"]


def test_trained_embeddings_are_the_students_own(tmp_path_factory):
    root = places("smolvlm", tmp_path_factory)
    student, teacher = pair(root)
    set_trainable(student, {"embeddings": 1.0})
    batch = batch_of(root, [1, 5])
    signals = LiveTeacher(teacher).signals(batch, ALL)
    Objective(student, a_stage({"hidden": 1.0}))(batch, signals, COUNTS)["loss"].backward()
    seen = student.get_input_embeddings().weight.grad.abs().sum(-1) > 0
    text = set(batch["input_ids"][batch["attention_mask"].bool()].tolist()) - {student.config.image_token_id}
    assert text <= set(seen.nonzero()[:, 0].tolist()) and not seen[student.config.image_token_id]
