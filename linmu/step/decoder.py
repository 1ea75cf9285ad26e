"""The step form itself: prefill and decode step of a student, written once against `Ops` (see ops.py).

Layout of every activation: [batch, tokens, packed heads]. Tensors are opaque here: torch tensors when run eagerly,
graph value names when exported. Names of weights: form.py. Maths: mmate.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linmu.layout.types import SCHEDULES, SHIFTS
from linmu.step.form import DecoderForm
from linmu.step.ops import Ops

Tensor = Any
State = dict[str, Tensor]


@dataclass(frozen=True)
class Tables:
    """cos and sin [rows, d/2] of the current tokens; `rows` are looked up by token index (None = one token)."""

    cos: Tensor
    sin: Tensor
    straight: Tensor  # token index of every token in prompt order


def step(ops: Ops, form: DecoderForm, input_ids: Tensor, position_ids: Tensor, past: State, fill: Tensor | None):
    """One decode step: input_ids [B,1], position_ids [P?,B,1], past state -> (logits [B,1,V], present state).

    `fill` [B]: tokens seen so far, only with a text window.
    """
    x = ops.embed(input_ids, "token_embedding")
    cos, sin = ops.rope_tables(position_ids, form)
    tables = Tables(cos, sin, ops.batch_index(position_ids, form))
    x, present = _layers(ops, form, x, tables, past, None, None, fill)
    return ops.head(x, "token_embedding" if form.tied else "head"), present


def prefill(
    ops: Ops,
    form: DecoderForm,
    inputs_embeds: Tensor,
    position_ids: Tensor,
    past: State,
    layout: dict[str, Tensor] | None,
    deepstack: Tensor | None,
    fill: Tensor | None,
):
    """A piece of a prompt: inputs_embeds [1,S,D], position_ids [P?,1,S] -> (logits [1,1,V] of the last token, present).

    layout: the tensors of linmu.layout.LAYOUT_SPECS without their prefix (None for text-only decoders);
    deepstack [n,1,S,D]: features added after the first n layers (Qwen3-VL).
    """
    cos, sin = ops.rope_tables(position_ids, form)
    straight = ops.token_index(inputs_embeds)
    if layout is not None:
        cos, sin = ops.extend_rows(cos, layout["backward"]), ops.extend_rows(sin, layout["backward"])
        layout = ops.prepare_layout(layout, form)
    tables = Tables(cos, sin, straight)
    x, present = _layers(ops, form, inputs_embeds, tables, past, layout, deepstack, fill)
    return ops.head(ops.last_token(x), "token_embedding" if form.tied else "head"), present


def _layers(ops: Ops, form: DecoderForm, x, tables, past, layout, deepstack, fill) -> tuple[Tensor, State]:
    present: State = {}
    update = None  # the last branch's output, not yet added to the residual stream x
    for i in range(form.layers):
        name = f"layers.{i}."
        ops.enter(name)
        u, x = ops.add_rms_norm(x, update, name + "norm_in", form.eps)
        own = {"conv": past[f"past.{i}.conv"], "recurrent": ops.read_state(past[f"past.{i}.recurrent"], form)}
        if form.mmate.text_window:
            own |= {kind: past[f"past.{i}.{kind}"] for kind in ("key", "value")}
        y, state = _mmate(ops, form, i, u, tables, own, layout, fill)
        state["recurrent"] = ops.write_state(state["recurrent"], form)
        present |= {f"present.{i}.{kind}": value for kind, value in state.items()}
        u, x = ops.add_rms_norm(x, ops.linear(y, name + "out_proj"), name + "norm_post", form.eps)
        update = ops.linear(ops.silu_mul(ops.linear(u, name + "gate_up")), name + "down")
        if deepstack is not None and i < form.deepstack:
            update = ops.add(update, ops.item(deepstack, i))
    ops.enter("")
    u, _ = ops.add_rms_norm(x, update, "norm", form.eps)
    return u, present


def _mmate(ops: Ops, form: DecoderForm, i: int, u, tables: Tables, past, layout, fill) -> tuple[Tensor, State]:
    """The M-MATE block of layer i without W_O: u [B,S,D] -> [B,S,H*d], new state.

    A prompt piece without vision tokens takes the path of a decode step, also in graphs that know images: that is
    what lets one prefill graph serve both at run time.
    """
    name = f"layers.{i}."
    seen = ops.rounded(u, name + "in_proj")  # windows take tokens of it: no input is rounded twice
    parts = _projected(ops, form, name, u, seen)
    if layout is None:
        return _text_path(ops, form, i, seen, parts, tables, past, fill)
    kinds = ("conv", "recurrent") + (("key", "value") if form.mmate.text_window else ())

    def flatten(result: tuple[Tensor, State]) -> list[Tensor]:
        return [result[0], *(result[1][kind] for kind in kinds)]

    values = ops.branch(
        layout["any_vision"],
        lambda: flatten(_vision_path(ops, form, i, seen, parts, tables, past, layout, fill)),
        lambda: flatten(_text_path(ops, form, i, seen, parts, tables, past, fill)),
    )
    return values[0], dict(zip(kinds, values[1:], strict=True))


def _projected(ops: Ops, form: DecoderForm, name: str, u, seen) -> list[Tensor]:
    """The parts of `DecoderForm.in_sizes`; quantized forms keep dt and the gates apart, in float."""
    if not form.quantized:
        return ops.split(ops.multiply(seen, name + "in_proj"), form.in_sizes)
    controls = ops.linear(u, name + "controls")
    return [ops.multiply(seen, name + "in_proj"), *ops.split(controls, form.in_sizes[1:])]


def _text_path(ops: Ops, form: DecoderForm, i: int, seen, parts, tables: Tables, past, fill) -> tuple[Tensor, State]:
    """No vision token: the forward direction in prompt order (and the text window)."""
    name = f"layers.{i}."
    qkv = _qkv(ops, form, name, parts)
    y, state = _direction(ops, form, name, "f", qkv, parts[1], tables, tables.straight, past, None)
    y = ops.head_norm(y, name + "norm_f", form)
    if not form.mmate.text_window:
        return y, state
    y, window = _mix(ops, form, i, seen, y, _gates(ops, name, parts), tables, past, None, fill)
    return y, state | window


def _vision_path(ops: Ops, form: DecoderForm, i: int, seen, parts, tables: Tables, past, layout, fill):
    """Both directions in scan order, windows, gates."""
    name = f"layers.{i}."
    gates = _gates(ops, name, parts) if form.gates else None
    backward = parts[2] if form.backward else None
    y, state = _flex(ops, form, i, _qkv(ops, form, name, parts), parts[1], backward, gates, tables, past, layout)
    if not form.mixed:
        return y, state
    y, window = _mix(ops, form, i, seen, y, gates, tables, past, layout, fill)
    return y, state | window


def _qkv(ops: Ops, form: DecoderForm, name: str, parts) -> Tensor:
    qkv = parts[0]
    if form.has(name + "qkv_bias"):
        qkv = ops.add_bias(qkv, name + "qkv_bias")
    return ops.qk_norm(qkv, name + "qk_norm", form) if form.has(name + "qk_norm") else qkv


def _gates(ops: Ops, name: str, parts) -> Tensor:
    return ops.sigmoid(ops.add_bias(parts[-1], name + "gates_bias"))


def _direction(ops: Ops, form: DecoderForm, name: str, tag: str, qkv, dt, tables, index, past, restart):
    """Conv, rotation and recurrence of one direction over an ordered sequence -> y [B,N,H*d], state."""
    m = form.mmate
    convolved, conv = ops.causal_conv(qkv, name + f"conv_{tag}", past and past["conv"])
    q, k, v = _turned(ops, form, convolved, tables, index, m.rope)
    repeat = form.state_heads // form.kv_heads
    k, v = ops.repeat_heads(k, repeat, form.head_dim), ops.repeat_heads(v, repeat, form.head_dim)
    g = ops.log_decay(dt, name + f"dt_bias_{tag}", name + f"decay_{tag}")
    y, recurrent = ops.linear_attention(q, k, v, g, past and past["recurrent"], restart, form)
    every = form.heads // form.state_heads
    if form.has(name + f"skip_{tag}"):
        y = ops.add(y, ops.scale_channels(ops.repeat_heads(v, every, form.head_dim), name + f"skip_{tag}"))
    return y, {"conv": conv, "recurrent": recurrent}


def _flex(ops: Ops, form: DecoderForm, i: int, qkv, dt, dt_backward, gates, tables, past, layout):
    """Flex-MA of a prompt with vision tokens: both directions in scan order, gated, back in prompt order."""
    name, schedule = f"layers.{i}.", i % SCHEDULES
    order = layout["order"][schedule]
    y, state = _direction(ops, form, name, "f", ops.take(qkv, order), ops.take(dt, order), tables, order, past, None)
    y = ops.take(ops.head_norm(y, name + "norm_f", form), layout["inverse"][schedule])
    if not form.backward:
        return y, state
    index = layout["backward"][schedule]
    back, _ = _direction(
        ops,
        form,
        name,
        "b",
        ops.take_or_zero(qkv, index),
        ops.take_or_zero(dt_backward, index),
        tables,
        index,
        None,
        layout["restart"],
    )
    back = ops.head_norm(back, name + "norm_b", form)
    back = ops.take_or_zero(back, layout["backward_slot"][schedule])
    gate_f, gate_b = ops.split(gates, (form.heads, form.heads) + ((form.heads,) if form.mixed else ()))[:2]
    forward = ops.scale_heads(y, ops.where(layout["vision"], gate_f, 1.0), form)
    return ops.add(forward, ops.scale_heads(back, ops.where(layout["vision"], gate_b, 0.0), form)), state


def _mix(ops: Ops, form: DecoderForm, i: int, seen, y, gates, tables: Tables, past, layout, fill):
    """Alpha * Flex-MA + (1 - alpha) * windows; alpha is 1 on text unless there is a text window."""
    m, name, state = form.mmate, f"layers.{i}.", {}
    alpha = ops.split(gates, (form.gates - form.heads, form.heads))[1] if form.backward else gates
    text, local = None, None
    if m.text_window:
        q, k, v = _swin_qkv(ops, form, name, seen, tables, tables.straight)
        text, key, value = ops.sliding_attention(q, k, v, past["key"], past["value"], fill, form)
        state = {"key": key, "value": value}
    if layout is not None and form.windows:
        local = _windows(ops, form, i, seen, tables, layout)
    if layout is None or m.text_window == 0:
        other = text if local is None else local
    else:
        other = text if local is None else ops.where(layout["vision"], local, text)
    if other is None:
        return y, state
    if layout is not None and m.text_window == 0:
        alpha = ops.where(layout["vision"], alpha, 1.0)
    return ops.add(ops.scale_heads(y, alpha, form), ops.scale_heads(other, ops.one_minus(alpha), form)), state


def _windows(ops: Ops, form: DecoderForm, i: int, seen, tables: Tables, layout) -> Tensor:
    """Local-Swin: gather window rows, attend inside their segments, scatter back (text reads a zero or any row)."""
    shift = i % SHIFTS
    index = layout["windows"][shift]  # [W * L]
    q, k, v = _swin_qkv(ops, form, f"layers.{i}.", ops.take(seen, index), tables, index)
    y = ops.window_attention(q, k, v, layout["window_bias"][shift], form)
    return ops.take_or_zero(y, layout["window_slot"][shift])


def _swin_qkv(ops: Ops, form: DecoderForm, name: str, seen, tables: Tables, index) -> list[Tensor]:
    qkv = ops.multiply(seen, name + "swin")
    if form.has(name + "swin_qk_norm"):
        qkv = ops.qk_norm(qkv, name + "swin_qk_norm", form)
    return _turned(ops, form, qkv, tables, index, True)


def _turned(ops: Ops, form: DecoderForm, qkv, tables: Tables, index, rope: bool) -> list[Tensor]:
    """Packed q | k | v -> [q, k, v], with queries and keys rotated in one go."""
    q, k = form.heads * form.head_dim, form.kv_heads * form.head_dim
    if not rope:
        return ops.split(qkv, (q, k, k))
    qk, v = ops.split(qkv, (q + k, k))
    return [*ops.split(ops.rotary(qk, tables.cos, tables.sin, index, form.heads + form.kv_heads), (q, k)), v]
