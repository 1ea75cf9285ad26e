"""Quantized matrices on phones: the operations run eagerly, and XNNPACK's own rounding of rows, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from linmu.calibration.collect import calibrate
from linmu.calibration.record import read_record
from linmu.export.bundles.golden import float_inputs
from linmu.export.phone import ops as phone_ops
from linmu.export.phone.methods import Embedding, Method, table_weights
from linmu.export.phone.ops import PhoneOps
from linmu.export.phone.weights import Buffers, program_weights
from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.presets import PHONE, find_preset
from linmu.model.folders import load_student
from linmu.quantize.form import preset_form
from linmu.specs import GraphSpec, TensorSpec
from linmu.step import decoder
from linmu.step.call_specs import window_row
from linmu.step.pack import decoder_form
from linmu.step.torch_formats import round_input
from linmu.step.torch_ops import TorchOps
from tests.folders import student_folder
from tests.quantize.test_form import FAST
from tests.step.prompts import run_student, step_positions, torch_layout, worst
from tests.tiny import VISION_NAMES, tiny_inputs, tiny_tokenizer

ROWS = MatrixFormat("int8", input="int8_rows")


@pytest.fixture(scope="module", params=["smolvlm", "llama"])
def place(request, tmp_path_factory):
    """(family, student, its record)."""
    root = tmp_path_factory.mktemp(request.param)
    folder = student_folder(request.param, root)
    calibrate(folder, root / "c.safetensors", allow_random=True, **FAST)
    return request.param, load_student(folder), read_record(root / "c.safetensors")


@pytest.mark.parametrize("preset", PHONE)
def test_prefill_and_step_equal_the_quantized_form(place, preset, monkeypatch):
    """The same integers behind inputs that are not rounded: a tie would make two right results differ."""
    monkeypatch.setattr(phone_ops, "rounded_rows", lambda x: x)
    family, student, record = place
    form = preset_form(decoder_form(student), record, find_preset("android", preset)).form
    weights = program_weights(form)
    eager, phone = TorchOps(float_inputs(form)), PhoneOps(form, Buffers(nn.Module(), weights))
    kind = "two_images" if family in VISION_NAMES else "text"
    inputs = tiny_inputs(family, student, tiny_tokenizer(family), kind=kind)
    prompt = run_student(student, inputs, form, row=window_row(form))
    past = {spec.name: torch.zeros(spec.shape) for spec in form.state_specs()}
    arguments = (
        form,
        torch.from_numpy(prompt.embeds),
        torch.from_numpy(prompt.positions),
        past,
        torch_layout(prompt.layout),
        None,
        None,
    )
    ids, positions = torch.tensor([[7]]), step_positions(form, prompt.next_position)
    with torch.no_grad():
        found, wanted = decoder.prefill(phone, *arguments), decoder.prefill(eager, *arguments)
        _compare(found, wanted)
        past = {spec.name: wanted[1][spec.output] for spec in form.state_specs()}
        wanted = decoder.step(eager, form, ids, positions, past, None)
        _compare(decoder.step(phone, form, ids, positions, past, None), wanted)
        table = Embedding(table_weights(weights, "token_embedding"), 3)(ids)
    assert torch.equal(table[..., :-3], eager.embed(ids, "token_embedding")) and not table[..., -3:].any()


def _compare(found, wanted) -> None:
    assert worst(found[0], wanted[0]) < 1e-4
    for name, value in wanted[1].items():
        assert worst(found[1][name], value) < 1e-4, name


class _Product(nn.Module):
    def __init__(self, q: torch.Tensor, scale: torch.Tensor):
        super().__init__()
        format = MatrixFormat("int4", 32, "int8_rows") if scale.ndim == 2 else ROWS
        self.format = format
        zero = torch.zeros(scale.shape, dtype=torch.int32 if format.group else torch.int64)
        self.weights = Buffers(self, {"w.q": q, "w.scale": scale, "w.zero": zero})

    def forward(self, x):
        return nn.functional.linear(phone_ops.rounded_rows(x), PhoneOps._value(self, "w", self.format))


def _lowered(module: nn.Module, width: int, path):
    """A product's method in ExecuTorch, at any number of rows."""
    pytest.importorskip("executorch")
    from linmu.export.phone.lowering import lower
    from linmu.runtimes.et_runner import open_program

    spec = GraphSpec("p.pte", (TensorSpec("x", "float32", (1, "tokens", width)),), ())
    program, reports = lower({"product": Method(module, spec)}, {"product": {"tokens": 64}})
    assert reports["product"].share == 1.0 and reports["product"].left == {}
    path.write_bytes(program.buffer)
    opened = open_program(path)
    return opened, opened.load_method("product")


@pytest.mark.parametrize("group", [0, 32])
def test_xnnpack_rounds_rows_as_the_reference_does(group, tmp_path):
    """The identity as matrix shows what the product sees: every value, whatever the row's range."""
    scale = torch.ones(64, 2) if group else torch.ones(64)
    program, method = _lowered(_Product(torch.eye(64, dtype=torch.int8), scale), 64, tmp_path / "p.pte")
    generator = torch.Generator().manual_seed(1)
    for case, spread in enumerate((1e-6, 0.3, 7.0, 2e4)):
        for offset in (0.0, -3 * spread, 2 * spread):
            x = torch.randn(1, 1 + 31 * (case % 2), 64, generator=generator) * spread + offset
            x[0, 0, :9] = 0
            if case == 1:
                x = (x * 2).round() / 2  # ties
            if case == 2:
                x[0, -1] = 0  # nothing but zeros
            assert torch.equal(method.execute([x])[0], round_input(x, ROWS, torch.ones(()))), (case, offset)
    del program


def test_xnnpack_multiplies_the_integers(tmp_path):
    """Int4 by groups, scales in bfloat16: against the same sum in float64."""
    generator = np.random.default_rng(2)
    q = generator.integers(-8, 8, (96, 64)).astype(np.int8)
    scale = torch.from_numpy(generator.uniform(0.001, 0.02, (96, 2)).astype(np.float32)).bfloat16().float()
    program, method = _lowered(_Product(torch.from_numpy(q), scale), 64, tmp_path / "p.pte")
    x = torch.randn(1, 37, 64, generator=torch.Generator().manual_seed(4))
    seen = round_input(x, ROWS, torch.ones(())).double()
    wanted = seen @ (torch.from_numpy(q).double() * scale.double().repeat_interleave(32, 1)).T
    assert float((method.execute([x])[0] - wanted).abs().max() / wanted.std()) < 2e-6
    del program
