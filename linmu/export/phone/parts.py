"""A packed value as its consecutive parts along the last axis.

XNNPACK does not slice tensors of a dynamic length. So what other tables of operations compute packed and split
afterwards (q | k | v, gate | up, the gates) is computed here part by part, from matrices that were split beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from linmu.step.form import DecoderForm

Parts: TypeAlias = tuple[Tensor, ...]
Value: TypeAlias = Any  # a tensor, or its parts


def each(function: Callable[[Tensor], Tensor], x: Value) -> Value:
    """The function on a tensor, or on every part."""
    return tuple(function(part) for part in x) if isinstance(x, tuple) else function(x)


def whole(x: Value) -> Parts:
    """All parts of a value."""
    return x if isinstance(x, tuple) else (x,)


def part_widths(name: str, form: DecoderForm, value: Tensor) -> tuple[int, ...] | None:
    """Lengths of the parts of a packed weight [out, ...], outputs first; None: it is computed in one piece."""
    qkv = (form.heads * form.head_dim, form.kv_heads * form.head_dim, form.kv_heads * form.head_dim)
    controls = (form.state_heads,) * (1 + form.backward) + gate_widths(form)
    widths = {
        "in_proj": qkv + (() if form.quantized else controls), "controls": controls, "swin": qkv, "qkv": qkv,
        "conv_f": qkv, "conv_b": qkv, "gates": gate_widths(form),
        "qk_norm": (form.heads, form.kv_heads), "swin_qk_norm": (form.heads, form.kv_heads),
        "gate_up": (len(value) // 2,) * 2,
    }  # fmt: skip
    return widths.get(name.rpartition(".")[2].removesuffix("_bias"))


def gate_widths(form: DecoderForm) -> tuple[int, ...]:
    """Widths of g_f, g_b and alpha: those that exist."""
    return (form.heads,) * (2 * form.backward + form.mixed)


def grouped(x: Value, sizes: tuple[int, ...]) -> list[Value]:
    """Parts put together again by consecutive `sizes`, each the sum of some parts' widths."""
    parts, found = list(whole(x)), list[Value]()
    for size in sizes:
        taken, width = list[Tensor](), 0
        while width < size:
            taken.append(parts.pop(0))
            width += taken[-1].shape[-1]
        assert width == size, "a split between two parts"
        found.append(taken[0] if len(taken) == 1 else tuple(taken))
    return found
