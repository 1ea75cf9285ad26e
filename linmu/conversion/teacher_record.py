"""What a teacher's decoder computes on a few tokens, layer by layer, and that its attention is one a mixer can make.

Computed in float32, one layer at a time, whatever type the weights have. Glossary: S tokens, D hidden size, H heads,
G key/value heads, d head size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from linmu.conversion.decoder_rules import ANOTHER, sliding_window
from linmu.errors import InputError
from linmu.families import Family
from linmu.model.rotary import batch_tables, rotate
from linmu.model.widened import HALVES, widened

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
    attention_inputs: list[Tensor] = field(default_factory=list)  # by every attention, behind the layer's norm
    mixed: list[Tensor] = field(default_factory=list)  # what every attention added
    final: Tensor | None = None  # behind the decoder's norm
    logits: Tensor | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a model's forward. With a mask transformers does not take positions for packing."""
        return {
            "input_ids": self.ids,
            "attention_mask": torch.ones_like(self.ids),
            "position_ids": self.positions,
            "use_cache": False,
        }


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
    calls: list[dict[str, Any]] = []
    with in_float32(teacher), _hooks(teacher, record), _spied(teacher, calls):
        try:
            output = teacher(**record.arguments)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # a config that contradicts itself
            raise InputError("the teacher itself cannot run", got=error, fix="check its config.json") from error
    record.logits = output.logits.float()
    for layer, options in enumerate(calls):
        _require_plain(layer, options, teacher.get_decoder().layers[layer].self_attn)


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
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """While open, half-precision weights compute in float32: a layer at a time, the two tables by rows."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _, __, rows: rows.float() if rows.dtype in HALVES else rows
    )
    head.forward = partial(logits_of, head.weight)
    try:
        with widened([*decoder.layers, decoder.norm]):
            yield
    finally:
        del head.__dict__["forward"]
        handle.remove()


def logits_of(table: Tensor, x: Tensor) -> Tensor:
    """Logits of x [B,S,D] with a table [V,D] of any float type, by rows: [B,S,V]."""
    return torch.cat([x @ rows.to(x.dtype).T for rows in table.split(HEAD_ROWS)], -1)


@contextmanager
def _hooks(teacher: PreTrainedModel, record: TeacherRecord) -> Iterator[None]:
    """Fill the record during a pass and compare every attention."""
    decoder, handles = teacher.get_decoder(), []

    def on_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.inputs.append((args[0] if args else kwargs["hidden_states"]).float())

    def on_attention(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        layer, u = len(record.mixed), args[0] if args else kwargs["hidden_states"]
        record.attention_inputs.append(u.float())
        record.mixed.append(output[0].float())
        try:
            tables = kwargs.get("position_embeddings")
            ours = softmax_mixer(partial(_projected, attention), attention.o_proj, u, tables)
        except (RuntimeError, TypeError, AttributeError) as error:  # sizes that do not meet, no position embeddings
            raise differs(f"layer {layer}: attention", error) from error
        require_equal(ours, output[0], f"layer {layer}: attention")

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
def _spied(teacher: PreTrainedModel, calls: list[dict[str, Any]]) -> Iterator[None]:
    """Collect what every layer tells transformers' attention function: windows longer than the probe show in it."""
    config = teacher.get_decoder().config
    before = config._attn_implementation_internal
    if before not in ("sdpa", "eager"):
        yield
        return

    def attend(module: nn.Module, *args: Any, **options: Any) -> Any:
        if hasattr(module, "q_proj"):
            calls.append(options)
        plain = AttentionInterface._global_mapping.get(before)  # each model's module has an eager one of its own
        plain = plain or sys.modules[type(module).__module__].eager_attention_forward
        return plain(module, *args, **options)

    AttentionInterface.register(SPY, attend)
    AttentionMaskInterface.register(SPY, AttentionMaskInterface._global_mapping[before])
    config._attn_implementation_internal = SPY
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def _require_plain(layer: int, options: dict[str, Any], attention: nn.Module) -> None:
    if window := options.get("sliding_window"):
        raise sliding_window(layer, window)
    if changed := [name for name in CHANGES if options.get(name) is not None]:
        raise InputError(
            f"attention of layer {layer}",
            got=f"{changed[0]} {options[changed[0]]}",
            expected="plain softmax attention",
            fix=ANOTHER,
        )
    scale, ours = options.get("scaling"), attention.head_dim**-0.5
    if scale is not None and abs(scale / ours - 1) > TOLERANCE:
        raise InputError(
            f"attention of layer {layer}", got=f"scale {scale}", expected=f"head_dim^-0.5 = {ours:g}", fix=ANOTHER
        )


def softmax_mixer(project: Any, out: nn.Module, u: Tensor, position_embeddings: Any) -> Tensor:
    """Causal softmax attention of what a mixer projects and rotates: u [1,S,D], cos and sin [1,S,d] -> [1,S,D].

    Raises RuntimeError for sizes that do not meet, TypeError without cos and sin.
    """
    tables = batch_tables(position_embeddings, position_embeddings[0].shape[0])
    q, k, v = project(u)
    if 2 * tables[0].shape[-1] != q.shape[-1]:
        raise RuntimeError(f"rotary positions on {2 * tables[0].shape[-1]} of {q.shape[-1]} channels of a head")
    return out(softmax_attention(rotate(q, *tables), rotate(k, *tables), v))


def _projected(attention: nn.Module, u: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (
        getattr(attention, name)(u).unflatten(-1, (-1, attention.head_dim)) for name in ("q_proj", "k_proj", "v_proj")
    )
    if getattr(attention, "q_norm", None) is not None:
        q, k = attention.q_norm(q), attention.k_norm(k)
    return q, k, v


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Q [B,S,H,d], k and v [B,S,G,d] -> [B,S,H*d]."""
    repeat = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def require_equal(ours: Tensor, theirs: Tensor | None, place: str) -> None:
    """Raise InputError, naming the place, unless `ours` is `theirs` to TOLERANCE."""
    assert theirs is not None
    if ours.shape != theirs.shape:
        raise differs(place, f"sizes {tuple(ours.shape)} for {tuple(theirs.shape)}")
    ours, theirs = ours.double(), theirs.double()
    if not bool(theirs.isfinite().all()):
        raise InputError(f"the model's activations are not finite ({place})", fix="check its weights")
    allowed = TOLERANCE * (theirs.std() + theirs.abs())
    if not bool(((ours - theirs).abs() <= allowed).all()):
        error = float(((ours - theirs).abs() / theirs.std()).max())
        raise differs(place, f"an error of {error:.2g} standard deviations")


def differs(place: str, got: object) -> InputError:
    """The refusal of a decoder that does something else at `place`."""
    return InputError(
        f"the teacher's decoder does something that a student does not ({place} differs)",
        got=got,
        expected=f"the teacher's values to {TOLERANCE:g}, its own attention given",
        fix=ANOTHER,
    )
