"""What the calls of a step form take and give, by name and shape: the graphs' and methods' borders."""

from __future__ import annotations

from dataclasses import replace

from linmu.layout import LAYOUT_SPECS
from linmu.processing.defaults import VIDEO_DEFAULTS
from linmu.specs import Dim, StateSpec, TensorSpec
from linmu.step.form import DecoderForm


def position_spec(form: DecoderForm, batch: Dim, length: Dim) -> TensorSpec:
    """Positions of a call's tokens, on three axes where the family has them."""
    return TensorSpec("position_ids", "int64", (3, batch, length) if form.rope_axes == 3 else (batch, length))


def state_io(form: DecoderForm, batch: Dim) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The state as a call's inputs and as its outputs."""
    shaped = [(spec, (batch, *spec.shape[1:])) for spec in form.state_specs()]
    return (
        [TensorSpec(spec.name, spec.dtype, shape) for spec, shape in shaped],
        [TensorSpec(spec.output, spec.dtype, shape) for spec, shape in shaped],
    )


def fill_spec(form: DecoderForm, batch: Dim) -> list[TensorSpec]:
    """Tokens seen before this call; an input only where a text window needs it."""
    return [TensorSpec("past_length", "int64", (batch,))] if form.mmate.text_window else []


def step_inputs(form: DecoderForm, batch: Dim) -> list[TensorSpec]:
    """Inputs of a decode step, in order."""
    ids, positions = TensorSpec("input_ids", "int64", (batch, 1)), position_spec(form, batch, 1)
    return [ids, positions, *fill_spec(form, batch), *state_io(form, batch)[0]]


def window_row(form: DecoderForm) -> int:
    """The most tokens that one Local-Swin window can have: the row length that fits every prompt."""
    window = form.mmate.window
    frames = min(window.frames, form.mmate.max_span_frames) if form.family.name in VIDEO_DEFAULTS else 1
    return frames * window.rows * window.columns


def _layout_specs(form: DecoderForm, fixed_windows: bool) -> list[TensorSpec]:
    specs = list(LAYOUT_SPECS)
    if fixed_windows:
        row = window_row(form)
        specs = [
            replace(s, shape=tuple(row if dim == "window_tokens" else dim for dim in s.shape)) for s in LAYOUT_SPECS
        ]
    return specs


def prefill_inputs(form: DecoderForm, fixed_windows: bool = False, batch: Dim = 1) -> list[TensorSpec]:
    """Inputs of a prefill call, in order.

    fixed_windows: packed window rows have one length, whatever the prompt; batch: more than one sequence only where
    each has one text token.
    """
    embeds = TensorSpec("inputs_embeds", "float32", (batch, "tokens", form.hidden))
    inputs = [embeds, position_spec(form, batch, "tokens")]
    if form.vision:
        inputs += _layout_specs(form, fixed_windows)
    if form.deepstack:
        inputs.append(TensorSpec("deepstack", "float32", (form.deepstack, 1, "tokens", form.hidden)))
    past, _ = state_io(form, batch)
    return [*inputs, *fill_spec(form, batch), *past]


def manifest_states(form: DecoderForm) -> tuple[StateSpec, ...]:
    """State specs with the step graph's symbolic batch."""
    return tuple(
        StateSpec(s.name, s.output, s.dtype, ("batch", *s.shape[1:]), s.axes, s.init) for s in form.state_specs()
    )
