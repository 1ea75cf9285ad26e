"""Matrices that float16 cannot multiply are found on the probe prompt, by their packed names."""

from __future__ import annotations

import torch

from linmu.formats.precision import Precision
from linmu.reference.eager import round_student
from linmu.reference.half_range import packed_linears, too_wide
from linmu.step.half_ops import half_matrices
from linmu.step.pack import decoder_form
from tests.folders import student_folder
from tests.model.students import fresh_student, shared_student
from tests.tiny import FAMILY_NAMES


def test_every_packed_matrix_is_made_of_its_linears():
    for family in FAMILY_NAMES:
        student, _ = shared_student(family)
        form, linears = decoder_form(student), packed_linears(student)
        names = {name for name in half_matrices(form, Precision(activations="fp16")) if not name.startswith("token")}
        assert names <= set(linears) <= names | {"token_embedding"}
        for name in names - {"head"}:
            columns = torch.cat([linear.weight.T for linear in linears[name]], 1)
            found = form.weights[name]()
            assert columns.shape == found.shape
            assert torch.equal(columns.abs().sort(1).values, found.abs().sort(1).values), name


def test_a_matrix_out_of_range_is_named_and_kept(tmp_path):
    folder = student_folder("qwen2", tmp_path)
    student, _ = fresh_student("qwen2")
    assert too_wide(student, folder) == ()
    with torch.no_grad():
        student.get_decoder().layers[1].mlp.up_proj.weight.mul_(5e3)  # its products, and what `down` reads
        student.get_decoder().layers[2].self_attn.flex.k_proj.weight[0, 0] = 7e4  # a weight itself
    found = too_wide(student, folder)
    assert "layers.1.gate_up" in found and "layers.1.down" in found and "layers.2.in_proj" in found
    assert "layers.0.down" not in found and "layers.0.gate_up" not in found
    kept = student.get_decoder().layers[2].self_attn.flex.k_proj.weight.clone()
    precision = Precision("fp16", "fp16", "fp16", float32_matrices=found)
    round_student(student, precision)
    assert torch.equal(student.get_decoder().layers[2].self_attn.flex.k_proj.weight, kept)
    rounded = student.get_decoder().layers[0].mlp.down_proj.weight
    assert torch.equal(rounded, rounded.half().float())
    assert half_matrices(decoder_form(student), precision).isdisjoint(found)
    assert not half_matrices(decoder_form(student), Precision("fp16", "fp16"))
