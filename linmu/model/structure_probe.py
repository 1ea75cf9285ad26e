"""Whether a student's decoder is its teacher's in everything but the mixers: computed, not looked up.

The teacher runs on a few tokens once. Then the student's decoder, and its step form, get the teacher's own attention
outputs in the place of what their mixers would give, and the teacher's hidden state at the start of every layer: all
hidden states and logits must then be the teacher's. The mixers' own parts (projections, norms of heads, rotation,
output projection) are checked with softmax attention in the place of the recurrence: that must be the teacher's
attention. Whatever a decoder does besides, be it a multiplier, a soft cap or a layer without positions, shows.

All of it is computed in float32, one layer at a time, whatever type the weights have. Glossary: S tokens, D hidden
size, H heads, G key/value heads, d head size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from linmu.errors import InputError
from linmu.families import Family
from linmu.model.attention import MMateAttention
from linmu.model.decoder_rules import ANOTHER, sliding_window
from linmu.model.rotary import half_tables, rotate
from linmu.model.widened import decoder_parts, widened
from linmu.step.decoder import prefill
from linmu.step.form import DecoderForm, is_matrix
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps

TOKENS = 37
FAR = 1_000_000  # a position beyond what any teacher was trained on
TOLERANCE = 1e-4  # of a tensor's standard deviation, and of each value
HEAD_ROWS = 8192  # of the vocabulary, whose logits are computed at once
SPY = "linmu_structure_probe"
# What transformers' attention functions are told besides query, key and value; anything but None changes attention.
CHANGES = ("softcap", "s_aux", "sinks", "position_bias", "alibi", "chunk_size")


@dataclass
class TeacherRecord:
    """What the teacher computed: float32 tensors [1,S,D], layer by layer, and logits [1,S,V]."""

    ids: Tensor  # [1,S]
    positions: Tensor  # [1,S], or [3,1,S] for M-RoPE
    inputs: list[Tensor] = field(default_factory=list)  # of every layer
    seen: list[Tensor] = field(default_factory=list)  # by every attention, behind the layer's norm
    mixed: list[Tensor] = field(default_factory=list)  # what every attention added
    final: Tensor | None = None  # behind the decoder's norm
    logits: Tensor | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a model's forward. With a mask transformers does not take positions for packing."""
        return {
            "input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), "position_ids": self.positions,
            "use_cache": False,
        }  # fmt: skip


@torch.no_grad()
def record_teacher(teacher: PreTrainedModel, family: Family) -> TeacherRecord:
    """Run the teacher on random tokens at irregular positions, far from 0 first: some attention changes there.

    Raises InputError when its attention is not softmax attention of heads that a mixer can make.
    """
    ids, positions = _token_ids(teacher), _positions(family).to(teacher.device)
    _run(teacher, TeacherRecord(ids, positions + FAR))
    record = TeacherRecord(ids, positions)
    _run(teacher, record)
    return record


def _run(teacher: PreTrainedModel, record: TeacherRecord) -> None:
    """Fill the record; compares every attention with what a mixer's parts would make of its input."""
    options: list[dict[str, Any]] = []
    with widened(decoder_parts(teacher)), _hooks(teacher, record), _spied(teacher, options):
        try:
            output = teacher(**record.arguments)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # a config that contradicts itself
            raise InputError("the teacher itself cannot run", got=error, fix="check its config.json") from error
    record.logits = output.logits.float()
    for layer, given in enumerate(options):
        _require_plain(layer, given, teacher.get_decoder().layers[layer].self_attn)


@torch.no_grad()
def check_student(student: PreTrainedModel, record: TeacherRecord) -> None:
    """Raise InputError, naming the first layer, unless the student's decoder and step form are the teacher's."""
    with widened(decoder_parts(student)), _with_attention_of(student, record):
        logits = student(**record.arguments).logits
    _require_equal(logits, record.logits, "logits")
    form = decoder_form(student)
    table = form.weights["token_embedding"]()
    _require_equal(table[record.ids], record.inputs[0], "what the first layer gets")
    ops = _ProbeOps(_probe_form(form), record)
    past: Any = defaultdict(lambda: None)  # the recurrence has no state here
    try:
        logits, _ = prefill(ops, ops.form, record.inputs[0], record.positions, past, None, None, None)
    except RuntimeError as error:  # sizes that do not meet
        raise _differs(f"layer {ops.layer}", error) from error
    _require_equal(logits, record.logits, "logits")


def _token_ids(teacher: PreTrainedModel) -> Tensor:
    """[1,S]: as different as the vocabulary allows, none of them a picture's."""
    generator = torch.Generator().manual_seed(0)
    vocab = teacher.get_input_embeddings().num_embeddings
    names = [f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index")]
    media = {getattr(teacher.config, name, None) for name in names}
    ids = [i for i in torch.randperm(vocab, generator=generator).tolist() if i not in media]
    return torch.tensor([[ids[i % len(ids)] for i in range(TOKENS)]], device=teacher.device)


def _positions(family: Family) -> Tensor:
    """Growing, with gaps, and three different rows where a family has three."""
    steps = torch.arange(TOKENS)
    rows = [steps + steps // 5, 2 * steps + steps // 7, steps + 3 * (steps // 3)]
    return rows[0][None] if family.rope == "plain" else torch.stack(rows)[:, None]


@contextmanager
def _hooks(teacher: PreTrainedModel, record: TeacherRecord) -> Iterator[None]:
    """Fill the record during a pass and compare every attention."""
    decoder, handles = teacher.get_decoder(), []

    def on_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.inputs.append((args[0] if args else kwargs["hidden_states"]).float())

    def on_attention(attention: nn.Module, _: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer, u = len(record.mixed), kwargs["hidden_states"]
        record.seen.append(u.float())
        record.mixed.append(output[0].float())
        try:
            ours = softmax_mixer(partial(_projected, attention), attention.o_proj, u, kwargs["position_embeddings"])
        except (RuntimeError, TypeError) as error:  # sizes that do not meet, no position embeddings
            raise _differs(f"layer {layer}: attention", error) from error
        _require_equal(ours, output[0], f"layer {layer}: attention")

    def on_norm(_: nn.Module, __: Any, output: Tensor) -> None:
        record.final = output.float()

    for layer in decoder.layers:
        handles.append(layer.register_forward_pre_hook(on_layer, with_kwargs=True))
        handles.append(layer.self_attn.register_forward_hook(on_attention, with_kwargs=True))
    handles.append(decoder.norm.register_forward_hook(on_norm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _spied(teacher: PreTrainedModel, found: list[dict[str, Any]]) -> Iterator[None]:
    """Collect what every layer tells transformers' attention function: windows longer than the probe show in it."""
    config = teacher.get_decoder().config
    before = config._attn_implementation_internal
    if before != "sdpa":
        yield
        return
    plain = AttentionInterface._global_mapping["sdpa"]

    def attend(module: nn.Module, *args: Any, **options: Any) -> Any:
        if hasattr(module, "q_proj"):
            found.append(options)
        return plain(module, *args, **options)

    AttentionInterface.register(SPY, attend)
    AttentionMaskInterface.register(SPY, AttentionMaskInterface._global_mapping["sdpa"])
    config._attn_implementation_internal = SPY
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _require_plain(layer: int, options: dict[str, Any], attention: nn.Module) -> None:
    if window := options.get("sliding_window"):
        raise sliding_window(layer, window)
    if changed := [name for name in CHANGES if options.get(name) is not None]:
        raise InputError(f"attention of layer {layer}", got=f"{changed[0]} {options[changed[0]]}",
                         expected="plain softmax attention", fix=ANOTHER)  # fmt: skip
    scale, ours = options.get("scaling"), attention.head_dim**-0.5
    if scale is not None and abs(scale / ours - 1) > TOLERANCE:
        raise InputError(f"attention of layer {layer}", got=f"scale {scale}", expected=f"head_dim^-0.5 = {ours:g}",
                         fix=ANOTHER)  # fmt: skip


def softmax_mixer(project: Any, out: nn.Module, u: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """Causal softmax attention of what a mixer projects and rotates: u [1,S,D] -> [1,S,D].

    Raises RuntimeError for sizes that do not meet.
    """
    tables = half_tables(position_embeddings)
    q, k, v = project(u)
    if 2 * tables[0].shape[-1] != q.shape[-1]:
        raise RuntimeError(f"rotary positions on {2 * tables[0].shape[-1]} of {q.shape[-1]} channels of a head")
    return out(_attend(rotate(q, *tables), rotate(k, *tables), v))


def _projected(attention: nn.Module, u: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (
        getattr(attention, name)(u).unflatten(-1, (-1, attention.head_dim)) for name in ("q_proj", "k_proj", "v_proj")
    )
    if getattr(attention, "q_norm", None) is not None:
        q, k = attention.q_norm(q), attention.k_norm(k)
    return q, k, v


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Q [B,S,H,d], k and v [B,S,G,d] -> [B,S,H*d]."""
    repeat = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


@contextmanager
def _with_attention_of(student: PreTrainedModel, record: TeacherRecord) -> Iterator[None]:
    """While open, every mixer returns what the teacher's attention did, if its own parts would make the same."""
    decoder = student.get_decoder()
    blocks: list[MMateAttention] = [layer.self_attn for layer in decoder.layers]
    handles = []

    def answer(index: int, block: MMateAttention, hidden_states: Tensor, position_embeddings: Any, **_: Any) -> Any:
        _require_equal(hidden_states, record.seen[index], f"layer {index}: what attention gets")
        ours = softmax_mixer(block.flex, block.o_proj, record.seen[index].to(hidden_states.dtype), position_embeddings)
        _require_equal(ours, record.mixed[index], f"layer {index}: attention")
        return record.mixed[index].to(hidden_states.dtype), None

    def on_layer(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = args[0] if args else kwargs["hidden_states"]
        _require_equal(found, record.inputs[index], f"layer {index - 1}" if index else "what the first layer gets")

    for index, (layer, block) in enumerate(zip(decoder.layers, blocks, strict=True)):
        block.forward = partial(answer, index, block)  # type: ignore[method-assign]
        hook = partial(lambda i, _, args, kwargs: on_layer(i, args, kwargs), index)
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    handles.append(
        decoder.norm.register_forward_hook(lambda _, __, output: _require_equal(output, record.final, "the last norm"))
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            del block.__dict__["forward"]


def _probe_form(form: DecoderForm) -> DecoderForm:
    """The form with float32 layers read one at a time, and with rotation whatever the settings say."""
    weights = {
        name: thunk if is_matrix(name) and not name.startswith("layers.") else partial(_float, thunk)
        for name, thunk in form.weights.items()
    }
    return replace(form, mmate=replace(form.mmate, rope=True), weights=weights, streamed=True)


def _float(thunk: Any) -> Tensor:
    return thunk().float()


class _ProbeOps(TorchOps):
    """The step form's operations with softmax attention for the recurrence; compares with the teacher on the way."""

    def __init__(self, form: DecoderForm, record: TeacherRecord):
        super().__init__(form)
        self.form, self.record, self.layer = form, record, 0

    def enter(self, scope: str) -> None:
        if scope:
            self.layer = int(scope.split(".")[1])

    def add_rms_norm(self, x: Tensor, update: Tensor | None, weight: str, eps: float) -> tuple[Tensor, Tensor]:
        if weight.endswith("norm_in"):
            wanted = self.record.inputs[self.layer]
            _require_equal(x if update is None else x + update, wanted, f"layer {self.layer - 1} of the step form")
            u, x = super().add_rms_norm(wanted, None, weight, eps)
            _require_equal(u, self.record.seen[self.layer], f"layer {self.layer} of the step form: what attention gets")
            return u, x
        u, x = super().add_rms_norm(x, update, weight, eps)
        if weight == "norm":
            _require_equal(u, self.record.final, f"layer {self.layer} of the step form")
        return u, x

    def linear(self, x: Tensor, weight: str) -> Tensor:
        y = super().linear(x, weight)
        if not weight.endswith("out_proj"):
            return y
        _require_equal(y, self.record.mixed[self.layer], f"layer {self.layer} of the step form: attention")
        return self.record.mixed[self.layer]

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[Tensor, Any]:
        q, k, v = (x.unflatten(-1, (-1, form.head_dim)) for x in (q, k, v))
        return _attend(q, k, v), None

    def causal_conv(self, x: Tensor, weight: str, past: Any) -> tuple[Tensor, Any]:
        return x, past

    def log_decay(self, raw: Tensor, dt_bias: str, scale: str) -> Tensor:
        return raw

    def head_norm(self, x: Tensor, weight: str, form: DecoderForm) -> Tensor:
        return x

    def sigmoid(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)  # all of the mix is the recurrence's, none the text window's

    def scale_channels(self, x: Tensor, weight: str) -> Tensor:
        return torch.zeros_like(x)  # the skip of a value around the recurrence

    def sliding_attention(self, q, k, v, past_key, past_value, fill, form: DecoderForm) -> tuple[Tensor, Any, Any]:
        return torch.zeros_like(q), past_key, past_value

    def read_state(self, stored: dict[str, Any], form: DecoderForm) -> Any:
        return None

    def write_state(self, state: Any, form: DecoderForm) -> dict[str, Any]:
        return {}

    def last_token(self, x: Tensor) -> Tensor:
        return x

    def head(self, x: Tensor, weight: str) -> Tensor:
        table = self.weights[weight]
        return torch.cat([x @ rows.to(x.dtype).T for rows in table.split(HEAD_ROWS)], -1)


def _require_equal(ours: Tensor, theirs: Tensor | None, place: str) -> None:
    assert theirs is not None
    if ours.shape != theirs.shape:
        raise _differs(place, f"sizes {tuple(ours.shape)} for {tuple(theirs.shape)}")
    ours, theirs = ours.double(), theirs.double()
    if not bool(theirs.isfinite().all()):
        raise InputError(f"the model's activations are not finite ({place})", fix="check its weights")
    allowed = TOLERANCE * (theirs.std() + theirs.abs())
    if not bool(((ours - theirs).abs() <= allowed).all()):
        error = float(((ours - theirs).abs() / theirs.std()).max())
        raise _differs(place, f"an error of {error:.2g} standard deviations")


def _differs(place: str, got: object) -> InputError:
    return InputError(
        f"the teacher's decoder does something that a student does not ({place} differs)", got=got,
        expected=f"the teacher's values to {TOLERANCE:g}, its own attention given", fix=ANOTHER,
    )  # fmt: skip
