"""The step form itself: prefill and decode step of a student, written once against `Ops` (see ops.py).

Layout of every activation: [batch, tokens, packed heads]. Tensors are opaque here: torch tensors when run eagerly,
graph value names when exported. Names of weights: form.py. Maths: mmate.md.

B sequences, S tokens, D hidden size, H heads, G key-value heads, M heads with a state, d head size, C = (H + 2G) d.
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


@dataclass(frozen=True)
class Call:
    """What all layers of one prefill call or decode step share.

    layout: index tensors and masks of a piece with vision tokens (`Ops.prepare_layout`), None in decode steps and
    text-only decoders; recent: what text windows need (`Ops.prepare_window`), None without them.
    """

    ops: Ops
    form: DecoderForm
    tables: Tables
    past: State
    layout: dict[str, Any] | None
    recent: Any | None


@dataclass(frozen=True)
class Layer:
    """One layer in one call: its weights' names and the state that it goes on from, the recurrent one in float32."""

    call: Call
    index: int
    past: State

    @property
    def ops(self) -> Ops:
        """The operations."""
        return self.call.ops

    @property
    def form(self) -> DecoderForm:
        """Sizes and switches."""
        return self.call.form

    def weight(self, name: str) -> str:
        """The packed name of one of its weights."""
        return f"layers.{self.index}.{name}"

    def has(self, name: str) -> bool:
        """Whether it has this weight."""
        return self.form.has(self.weight(name))


@dataclass(frozen=True)
class Projections:
    """What a layer makes of its input u before anything mixes tokens; None: this student has no such part.

    u: as the matrices take it [B,S,D] (windows project tokens of it); qkv [B,S,C] without its bias; dt_forward and
    dt_backward [B,S,M]; gates [B,S,gates]: g_f | g_b | alpha before bias and sigmoid; window [B,S,C]: the text window's
    own q, k and v (None: it shares qkv).
    """

    u: Tensor
    qkv: Tensor
    dt_forward: Tensor
    dt_backward: Tensor | None
    gates: Tensor | None
    window: Tensor | None


@dataclass(frozen=True)
class Direction:
    """One direction of Flex-MA: its weights end in `_{tag}`.

    order [N]: the token that every place of the sequence shows; past: None starts from zeros; restart [N]: where the
    state is dropped, in the backward direction.
    """

    tag: str
    order: Tensor
    past: State | None
    restart: Tensor | None = None


def step(ops: Ops, form: DecoderForm, input_ids: Tensor, position_ids: Tensor, past: State, fill: Tensor | None):
    """One decode step: input_ids [B,1], position_ids [P?,B,1], past state -> (logits [B,1,V], present state).

    `fill` [B]: tokens seen so far, only with a text window.
    """
    x = ops.embed(input_ids, "token_embedding")
    cos, sin = ops.rope_tables(position_ids, form)
    tables = Tables(cos, sin, ops.batch_index(position_ids, form))
    x, present = _layers(Call(ops, form, tables, past, None, _recent(ops, form, x, fill)), x, None)
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
    recent = _recent(ops, form, inputs_embeds, fill)
    call = Call(ops, form, Tables(cos, sin, straight), past, layout, recent)
    x, present = _layers(call, inputs_embeds, deepstack)
    return ops.head(ops.last_token(x), "token_embedding" if form.tied else "head"), present


def _recent(ops: Ops, form: DecoderForm, x: Tensor, fill: Tensor | None) -> Any | None:
    return ops.prepare_window(x, fill, form) if form.mmate.text_window else None


def _layers(call: Call, x: Tensor, deepstack: Tensor | None) -> tuple[Tensor, State]:
    """All layers and the last norm: x [B,S,D] -> [B,S,D], present state."""
    ops, form, past = call.ops, call.form, call.past
    present: State = {}
    update = None  # the last branch's output, not yet added to the residual stream x
    for i in range(form.layers):
        ops.enter(f"layers.{i}.")
        u, x = ops.add_rms_norm(x, update, f"layers.{i}.norm_in", form.eps)
        layer_past = {"conv": past[f"past.{i}.conv"], "recurrent": ops.read_state(past[f"past.{i}.recurrent"], form)}
        if form.mmate.text_window:
            layer_past |= {kind: past[f"past.{i}.{kind}"] for kind in ("key", "value")}
        layer = Layer(call, i, layer_past)
        y, state = _mmate(layer, u)
        state["recurrent"] = ops.write_state(state["recurrent"], form)
        present |= {f"present.{i}.{kind}": value for kind, value in state.items()}
        u, x = ops.add_rms_norm(x, ops.linear(y, layer.weight("out_proj")), layer.weight("norm_post"), form.eps)
        update = ops.linear(ops.silu_mul(ops.linear(u, layer.weight("gate_up"))), layer.weight("down"))
        if deepstack is not None and i < form.deepstack:
            update = ops.add(update, ops.item(deepstack, i))
    ops.enter("")
    u, _ = ops.add_rms_norm(x, update, "norm", form.eps)
    return u, present


def _mmate(layer: Layer, u: Tensor) -> tuple[Tensor, State]:
    """The M-MATE block without W_O: u [B,S,D] -> [B,S,H*d], new state.

    A prompt piece without vision tokens takes the path of a decode step, also in graphs that know images: that is
    what lets one prefill graph serve both at run time.
    """
    ops, layout = layer.ops, layer.call.layout
    projected = _projections(layer, u)
    kinds = ("conv", "recurrent") + (("key", "value") if layer.form.mmate.text_window else ())

    def flatten(result: tuple[Tensor, State]) -> list[Tensor]:
        return [result[0], *(result[1][kind] for kind in kinds)]

    def text() -> list[Tensor]:
        return ops.one_or_many(lambda: flatten(_text_path(layer, projected)))

    if layout is None:
        values = text()
    else:
        values = ops.branch(layout["any_vision"], lambda: flatten(_vision_path(layer, projected, layout)), text)
    return values[0], dict(zip(kinds, values[1:], strict=True))


def _projections(layer: Layer, u: Tensor) -> Projections:
    """The parts of `DecoderForm.in_sizes`; quantized forms keep dt and the gates apart, in float."""
    ops, form = layer.ops, layer.form
    rounded = ops.rounded(u, layer.weight("in_proj"))  # windows take tokens of it: no input is rounded twice
    if form.quantized:
        controls = ops.linear(u, layer.weight("controls"))
        parts = [ops.multiply(rounded, layer.weight("in_proj")), *ops.split(controls, form.in_sizes[1:])]
    else:
        parts = ops.split(ops.multiply(rounded, layer.weight("in_proj")), form.in_sizes)
    rest = iter(parts)
    return Projections(
        u=rounded,
        qkv=next(rest),
        dt_forward=next(rest),
        dt_backward=next(rest) if form.backward else None,
        gates=next(rest) if form.gates else None,
        window=_swin(layer, rounded) if form.mmate.own_text_window else None,
    )


def _text_path(layer: Layer, projected: Projections) -> tuple[Tensor, State]:
    """No vision token: the forward direction in prompt order (and the text window)."""
    qkv = _qkv(layer, projected)
    forward = Direction("f", layer.call.tables.straight, layer.past)
    y, state = _direction(layer, forward, qkv, projected.dt_forward)
    y = layer.ops.head_norm(y, layer.weight("norm_f"), layer.form)
    if not layer.form.mmate.text_window:
        return y, state
    y, window = _mix(layer, projected, qkv, y, _gates(layer, projected), None)
    return y, state | window


def _vision_path(layer: Layer, projected: Projections, layout: dict[str, Any]) -> tuple[Tensor, State]:
    """Both directions in scan order, windows, gates."""
    gates = _gates(layer, projected) if layer.form.gates else None
    qkv = _qkv(layer, projected)
    y, state = _flex(layer, projected, qkv, gates, layout)
    if not layer.form.mixed:
        return y, state
    y, window = _mix(layer, projected, qkv, y, gates, layout)
    return y, state | window


def _qkv(layer: Layer, projected: Projections) -> Tensor:
    """Queries, keys and values with the teacher's bias and norms [B,S,C]."""
    qkv = projected.qkv
    if layer.has("qkv_bias"):
        qkv = layer.ops.add_bias(qkv, layer.weight("qkv_bias"))
    return layer.ops.qk_norm(qkv, layer.weight("qk_norm"), layer.form) if layer.has("qk_norm") else qkv


def _gates(layer: Layer, projected: Projections) -> Tensor:
    return layer.ops.sigmoid(layer.ops.add_bias(projected.gates, layer.weight("gates_bias")))


def _direction(layer: Layer, direction: Direction, qkv: Tensor, dt: Tensor) -> tuple[Tensor, State]:
    """Conv, rotation and recurrence over an ordered sequence: qkv [B,N,C], dt [B,N,M] -> y [B,N,H*d], state."""
    ops, form, tag, past = layer.ops, layer.form, direction.tag, direction.past
    convolved, conv = ops.causal_conv(qkv, layer.weight(f"conv_{tag}"), past and past["conv"])
    if form.mmate.rope:
        qk, v = _turned(layer, convolved, direction.order)
        q, k = ops.split(qk, _qk_sizes(form))
    else:
        q, k, v = ops.split(convolved, (*_qk_sizes(form), form.kv_heads * form.head_dim))
    repeat = form.state_heads // form.kv_heads
    k, v = ops.repeat_heads(k, repeat, form.head_dim), ops.repeat_heads(v, repeat, form.head_dim)
    g = ops.log_decay(dt, layer.weight(f"dt_bias_{tag}"), layer.weight(f"decay_{tag}"))
    y, recurrent = ops.linear_attention(q, k, v, g, past and past["recurrent"], direction.restart, form)
    every = form.heads // form.state_heads
    if layer.has(f"skip_{tag}"):
        y = ops.add(y, ops.scale_channels(ops.repeat_heads(v, every, form.head_dim), layer.weight(f"skip_{tag}")))
    return y, {"conv": conv, "recurrent": recurrent}


def _flex(
    layer: Layer, projected: Projections, qkv: Tensor, gates: Tensor | None, layout: dict[str, Any]
) -> tuple[Tensor, State]:
    """Flex-MA of a prompt with vision tokens: both directions in scan order, gated, back in prompt order."""
    ops, form, schedule = layer.ops, layer.form, layer.index % SCHEDULES
    order = layout["order"][schedule]
    forward = Direction("f", order, layer.past)
    y, state = _direction(layer, forward, ops.take(qkv, order), ops.take(projected.dt_forward, order))
    y = ops.take(ops.head_norm(y, layer.weight("norm_f"), form), layout["inverse"][schedule])
    if not form.backward:
        return y, state
    index = layout["backward"][schedule]
    backward = Direction("b", index, None, layout["restart"])
    qkv, dt = ops.take_or_zero(qkv, index), ops.take_or_zero(projected.dt_backward, index)
    back, _ = _direction(layer, backward, qkv, dt)
    back = ops.head_norm(back, layer.weight("norm_b"), form)
    back = ops.take_or_zero(back, layout["backward_slot"][schedule])
    gate_f, gate_b = ops.split(gates, (form.heads, form.heads) + ((form.heads,) if form.mixed else ()))[:2]
    scaled = ops.scale_heads(y, ops.where(layout["vision"], gate_f, 1.0), form)
    return ops.add(scaled, ops.scale_heads(back, ops.where(layout["vision"], gate_b, 0.0), form)), state


def _mix(
    layer: Layer, projected: Projections, qkv: Tensor, y: Tensor, gates: Tensor, layout: dict[str, Any] | None
) -> tuple[Tensor, State]:
    """Alpha * Flex-MA + (1 - alpha) * windows; alpha is 1 on text unless there is a text window.

    Where nothing has left the text window yet, alpha of text is 0: the window has seen all.

    qkv: Flex-MA's, as `_qkv` gives them; layout: None where no token is one of vision, also in calls that have one.
    """
    ops, form = layer.ops, layer.form
    state: State = {}
    alpha = ops.split(gates, (form.gates - form.heads, form.heads))[1] if form.backward else gates
    text, local = None, None
    if form.mmate.text_window:
        straight = layer.call.tables.straight
        qk, v = _turned(layer, qkv if projected.window is None else projected.window, straight)
        recent = layer.call.recent
        text, key, value = ops.sliding_attention(qk, v, layer.past["key"], layer.past["value"], recent, form)
        state, opened = {"key": key, "value": value}, ops.where(ops.beyond_window(recent), alpha, 0.0)
        alpha = opened if layout is None or not form.windows else ops.where(layout["vision"], alpha, opened)
    if layout is not None and form.windows:
        local = _windows(layer, projected.u, layout)
    if layout is None or form.mmate.text_window == 0:
        other = text if local is None else local
    else:
        other = text if local is None else ops.where(layout["vision"], local, text)
    if other is None:
        return y, state
    if layout is not None and form.mmate.text_window == 0:
        alpha = ops.where(layout["vision"], alpha, 1.0)
    return ops.blend_heads(y, other, alpha, form), state


def _windows(layer: Layer, u: Tensor, layout: dict[str, Any]) -> Tensor:
    """Local-Swin: gather window rows, attend inside their segments, scatter back (text reads a zero or any row)."""
    ops, shift = layer.ops, layer.index % SHIFTS
    index = layout["windows"][shift]  # [W * L]
    qk, v = _turned(layer, _swin(layer, ops.take(u, index)), index)
    q, k = ops.split(qk, _qk_sizes(layer.form))
    y = ops.window_attention(q, k, v, layout["window_bias"][shift], layer.form)
    return ops.take_or_zero(y, layout["window_slot"][shift])


def _swin(layer: Layer, u: Tensor) -> Tensor:
    """Windows' own q, k and v of tokens u [B,N,D]: [B,N,C]."""
    qkv = layer.ops.multiply(u, layer.weight("swin"))
    return layer.ops.qk_norm(qkv, layer.weight("swin_qk_norm"), layer.form) if layer.has("swin_qk_norm") else qkv


def _turned(layer: Layer, qkv: Tensor, index: Tensor) -> list[Tensor]:
    """Packed q | k | v -> [q | k, v] with queries and keys rotated."""
    ops, form, tables = layer.ops, layer.form, layer.call.tables
    qk, v = ops.split(qkv, (sum(_qk_sizes(form)), form.kv_heads * form.head_dim))
    return [ops.rotary(qk, tables.cos, tables.sin, index, form.heads + form.kv_heads), v]


def _qk_sizes(form: DecoderForm) -> tuple[int, int]:
    """Channels of queries and of keys."""
    return form.heads * form.head_dim, form.kv_heads * form.head_dim
