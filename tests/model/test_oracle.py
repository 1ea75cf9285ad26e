"""Whole students against the float64 oracle: hidden states and logits of every position, text and vision apart."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from linmu.layout import media_from_grids, prompt_layout
from linmu.step.form import DecoderForm
from linmu.step.pack import decoder_form
from tests.model.oracle import Oracle
from tests.model.students import shared_student
from tests.step.prompts import run_student
from tests.tiny import tiny_inputs

CASES = {
    "qwen2_5_vl": ("qwen2_5_vl", "two_images", {}),
    "qwen3_vl": ("qwen3_vl", "video", {"decay": "kv_head", "skip": True}),
    "smolvlm": ("smolvlm", "two_images", {}),
    "llava": ("llava", "two_images", {"decay": "kv_head", "taps": 3}),
    "qwen3": ("qwen3", "text", {"text_window": 5}),
    "delta_qwen2_5_vl": ("qwen2_5_vl", "two_images", {"rule": "gated_delta"}),
    "delta_smolvlm": ("smolvlm", "two_images", {"rule": "gated_delta", "decay": "kv_head"}),
    "delta_qwen3": ("qwen3", "text", {"rule": "gated_delta", "text_window": 5}),
}


def _case(case, dtype):
    """(output, which rows are vision, hidden states and logits of the oracle) on the decoder's own inputs."""
    family, kind, settings = CASES[case]
    shared, tokenizer = shared_student(family, **settings)
    student = copy.deepcopy(shared).to(dtype)
    if dtype == torch.float64:
        _widen_norms(student)
    inputs = tiny_inputs(family, student, tokenizer, kind)
    inputs = {name: x.to(dtype) if torch.is_floating_point(x) else x for name, x in inputs.items()}
    prompt = run_student(student, {**inputs, "output_hidden_states": True}, _sizes(student))
    rules, ids = student._prompt_rules, inputs["input_ids"][0].numpy()
    spans, vision, positions = [], np.zeros(len(ids), bool), np.arange(len(ids))[None]
    if rules is not None:
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        media = media_from_grids(rules, ids, *(inputs.get(name) for name in names))
        placed = prompt_layout(rules, ids, media, student.mmate.max_span_frames)
        positions, spans = placed.position_ids, [(span.positions.tolist(), span.grid) for span in placed.spans]
        for span, _ in spans:
            vision[span] = True
        assert vision.any()
    oracle = Oracle.of(student)
    hidden = oracle.hidden_states(prompt.embeds[0], positions, spans, prompt.deepstack)
    return prompt.output, vision, hidden, oracle.logits(hidden[-1])


def _sizes(student) -> DecoderForm:
    """The student's form, for its sizes; of another rule there is none."""
    mmate, student.mmate = student.mmate, replace(student.mmate, rule="gated")
    form, student.mmate = decoder_form(student), mmate
    return form


def _widen_norms(student) -> None:
    """The decoder's own norms in float64: transformers computes them in float32, whatever a model is."""
    decoder = student.get_decoder()
    for owner in (decoder, *decoder.layers):
        for name, norm in list(owner.named_children()):
            if "norm" in name:
                wide = nn.RMSNorm(len(norm.weight), norm.variance_epsilon)
                wide.weight, wide.variance_epsilon = norm.weight, norm.variance_epsilon
                setattr(owner, name, wide)


def _assert_close(found: torch.Tensor, wanted: np.ndarray, rows: np.ndarray, limits: tuple[float, float], what) -> None:
    """Every row within the second limit, half of them within the first."""
    worst = (np.abs(found[0].double().numpy() - wanted)[rows] / wanted.std()).max(1)
    typical, worst = np.median(worst) if len(worst) else 0.0, worst.max(initial=0.0)
    assert typical < limits[0] and worst < limits[1], (what, typical, worst)


# In float32 one row in a hundred has a head whose terms nearly cancel, down to a hundredth of the usual output: its
# norm magnifies their rounding as much.
@pytest.mark.parametrize(
    "dtype, limits", [(torch.float64, (1e-10, 1e-10)), (torch.float32, (5e-6, 1e-4))], ids=("float64", "float32")
)
@pytest.mark.parametrize("family", CASES)
def test_students_are_the_oracle_at_every_position(family, dtype, limits):
    """The same maths in float64, and float32 noise no larger on vision tokens than on text."""
    output, vision, hidden, logits = _case(family, dtype)
    found = output.hidden_states
    for number, wanted in enumerate(hidden[:-2] + hidden[-1:]):  # of transformers, the last one is normed
        if family == "qwen3_vl" and 0 < number < len(found) - 1:
            continue  # transformers shows them before DeepStack's features are added
        for rows in (vision, ~vision):
            _assert_close(found[number], wanted, rows, limits, number)
    for rows in (vision, ~vision):
        _assert_close(output.logits, logits, rows, limits, "logits")
