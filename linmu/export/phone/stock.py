"""What ExecuTorch's stock LLM runners call: text_decoder and vision_encoder (beside token_embedding), or forward.

Those runners know positions and embeddings, no states and no layouts. So states are mutable buffers, dropped where a
call begins at position 0, and an embedding carries what its token needs besides: EXTRA channels behind the hidden ones,
which vision_encoder fills and which are zero on text. A runner gives an image as one piece, and a piece is one span.

    channel  0        1 on vision tokens, 0 on text
             1..4     token visited at this place by each scan schedule
             5..8     place of this token in each scan schedule
             9, 10    number of this token's window, by shift
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linmu.config import MMateConfig
from linmu.export.phone.methods import Method, used_weights, vision_method
from linmu.export.phone.ops import MASKED, Mask, PhoneOps, Straight, causal_constants
from linmu.export.phone.weights import Buffers
from linmu.layout.scan import invert, scan_order
from linmu.layout.types import SCHEDULES, SHIFTS
from linmu.layout.windows import window_pieces
from linmu.reference.vision_towers import VisionTower
from linmu.specs import GraphSpec, TensorSpec
from linmu.step import decoder
from linmu.step.form import DecoderForm

EXTRA = 1 + 2 * SCHEDULES + SHIFTS
MOST_CONTEXT = 1 << 24  # what the runners are told; the state has no limit


class StockOps(PhoneOps):
    """PhoneOps for a piece that is all text or all one span: nothing is padded, windows are a mask over the piece."""

    def token_index(self, x: Tensor) -> Any:
        super().token_index(x)
        return Straight()

    def extend_rows(self, table: Tensor, backward: Any) -> Tensor:
        return table

    def prepare_layout(self, layout: dict[str, Any], form: DecoderForm) -> dict[str, Any]:
        index = torch.arange(layout["vision"].yes.shape[1])
        return {**layout, "restart": causal_constants(index, None, strict=True)}

    def take(self, x: Any, index: Any) -> Any:
        return x if isinstance(index, Straight) else super().take(x, index)

    def take_or_zero(self, x: Any, index: Any) -> Any:
        return self.take(x, index)

    def window_attention(self, q, k, v, bias, form: DecoderForm) -> Tensor:
        repeat = form.heads // form.kv_heads
        k, v = (self.repeat_heads(x, repeat, form.head_dim) for x in (k, v))
        q, k, v = (self._by_head(x) for x in (q * form.head_dim**-0.5, k, v))  # [H, S, d]
        return self._packed(torch.bmm(torch.softmax(torch.bmm(q, k.permute(0, 2, 1)) + bias, -1), v))


class StockDecoder(nn.Module):
    """text_decoder: embeddings [1, S, D + EXTRA] (text-only: [1, S, D]) and positions [S] -> logits [1, 1, V]."""

    def __init__(self, form: DecoderForm, weights: Mapping[str, Tensor]):
        super().__init__()
        self.form, self.ops, self.states = form, StockOps(form, Buffers(self, weights)), form.state_specs()
        for spec in self.states:
            shape = spec.shape[1:] if len(spec.shape) == 4 else spec.shape  # a sequence: as the products take it
            self.register_buffer(_buffer(spec.name), torch.zeros(shape))

    def forward(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """See the class."""
        past = self._past(positions[:1] > 0)
        rows = embeds[..., : self.form.hidden] if self.form.vision else embeds
        layout = self._layout(embeds[..., self.form.hidden :]) if self.form.vision else None
        logits, present = decoder.prefill(
            self.ops, self.form, rows, positions.view(1, -1), past, layout, None, positions[:1]
        )
        for spec in self.states:
            getattr(self, _buffer(spec.name)).copy_(present[spec.output])
        return logits

    def _past(self, going_on: Tensor) -> dict[str, Tensor]:
        """The states, or zeros where a call begins at position 0.

        A branch of the program, because copies are fast: ExecuTorch's `where` goes element by element (two thirds of
        a decode step), and a product with 0 would keep a state that is not finite.
        """
        names = [spec.name for spec in self.states]
        states = tuple(getattr(self, _buffer(name)) for name in names)
        if torch.compiler.is_exporting():
            past = torch.cond(going_on, _copied, _zeroed, states)
        else:
            past = (_copied if bool(going_on) else _zeroed)(*states)
        return dict(zip(names, past, strict=True))

    def _layout(self, extra: Tensor) -> dict[str, Any]:
        """What `decoder.prefill` takes as a layout, made of the extra channels [1, S, EXTRA]."""
        yes = extra[..., :1]
        straight = torch.arange(extra.shape[1])
        columns = extra[0].permute(1, 0)  # [EXTRA, S]
        flag = columns[:1]
        index = (columns[1 : 1 + 2 * SCHEDULES] + (1 - flag) * straight.float()).round().long()
        order = [index[schedule] for schedule in range(SCHEDULES)]
        place = [index[SCHEDULES + schedule] for schedule in range(SCHEDULES)]
        last = extra.shape[1] - 1
        windows = columns[1 + 2 * SCHEDULES :]
        same = [(windows[i][:, None] == windows[i][None, :]).float()[None] for i in range(SHIFTS)]
        if self.form.mmate.causal_windows:
            triangle = causal_constants(straight, None).triangle
            same = [allowed * triangle for allowed in same]
        return {
            "order": order,
            "inverse": place,
            "backward": [line.flip(0) for line in order],
            "backward_slot": [last - line for line in place],
            "vision": Mask(yes, 1 - yes),
            "any_vision": None,
            "windows": [Straight()] * SHIFTS,
            "window_slot": [Straight()] * SHIFTS,
            "window_bias": [(1 - allowed) * MASKED for allowed in same],
        }


class StockEncoder(nn.Module):
    """vision_encoder: one tile [1, 3, height, width] -> embeddings [1, tokens, D + EXTRA]."""

    def __init__(self, tower: VisionTower, mmate: MMateConfig, grid: tuple[int, int, int]):
        super().__init__()
        self.tower = tower
        self.register_buffer("extra", extra_channels(grid, mmate)[None])

    def forward(self, pixel_values: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([self.tower(pixel_values), self.extra], -1)


class StockText(nn.Module):
    """forward: ids [1, S] and positions [S] -> logits [1, 1, V]; what TextLLMRunner calls."""

    def __init__(self, form: DecoderForm, weights: Mapping[str, Tensor]):
        super().__init__()
        self.decoder = StockDecoder(form, weights)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """See the class."""
        return self.decoder(self.decoder.ops.embed(input_ids, "token_embedding"), positions)


def extra_channels(grid: tuple[int, int, int], mmate: MMateConfig) -> Tensor:
    """The extra channels [tokens, EXTRA] of one span."""
    tokens = grid[0] * grid[1] * grid[2]
    orders = [torch.from_numpy(scan_order(grid, schedule, mmate.scan).copy()) for schedule in range(SCHEDULES)]
    places = [torch.from_numpy(invert(order.numpy())) for order in orders]
    columns = [torch.ones(tokens), *(line.float() for line in orders + places)]
    for shift in range(SHIFTS):
        number = torch.zeros(tokens)
        for window, piece in enumerate(window_pieces(grid, mmate.window, bool(shift))):
            number[torch.from_numpy(piece)] = window
        columns.append(number)
    return torch.stack(columns, 1)


def extra_of(form: DecoderForm) -> int:
    """Channels behind the hidden ones in the embeddings of this student's program."""
    return EXTRA if form.vision else 0


def stock_methods(
    form: DecoderForm, weights: Mapping[str, Tensor], file: str, tower: VisionTower | None, grid: tuple[int, int, int]
) -> dict[str, Method]:
    """`forward` of a text-only student, else `text_decoder` and `vision_encoder`; grid: of one tile, in tokens."""
    logits = TensorSpec("logits", "float32", (1, 1, form.vocab))
    positions = TensorSpec("positions", "int64", ("tokens",))
    if tower is None:
        ids = TensorSpec("input_ids", "int64", (1, "tokens"))
        return {"forward": Method(StockText(form, weights), GraphSpec(file, (ids, positions), (logits,)))}
    embeds = TensorSpec("inputs_embeds", "float32", (1, "tokens", form.hidden + EXTRA))
    image = vision_method(tower, file).spec
    rows = TensorSpec("embeddings", "float32", (*image.outputs[0].shape[:2], form.hidden + EXTRA))
    decoder = StockDecoder(form, used_weights(form, weights))
    return {
        "text_decoder": Method(decoder, GraphSpec(file, (embeds, positions), (logits,))),
        "vision_encoder": Method(StockEncoder(tower, form.mmate, grid), GraphSpec(file, image.inputs, (rows,))),
    }


def metadata(form: DecoderForm, most_tokens: int, bos: int, eos: tuple[int, ...]) -> dict[str, Any]:
    """Constant methods that the runners read."""
    return {
        "get_bos_id": bos,
        "get_eos_ids": list(eos),
        "get_max_seq_len": most_tokens,
        "get_max_context_len": MOST_CONTEXT,
        "get_vocab_size": form.vocab,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": False,
        "enable_dynamic_shape": True,
        "get_n_layers": form.layers,
    }


def _copied(*states: Tensor) -> tuple[Tensor, ...]:
    return tuple(state.clone() for state in states)


def _zeroed(*states: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(state.shape) for state in states)


def _buffer(state: str) -> str:
    return state.replace(".", "_")
