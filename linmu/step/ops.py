"""The operations that the step form is written in. Two tables implement them: TorchOps and OnnxOps.

Activations are [batch, tokens, packed heads] (packed = heads * head_dim in the last axis); `index` is [N] int64 into
the token axis; weights are named (form.py). ONNX counterparts of the recurrent ones: CausalConvWithState and
LinearAttention (opset 27).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from linmu.step.form import DecoderForm

T = Any


class Ops(Protocol):
    """See each method; `T` is a torch tensor or the name of a graph value."""

    def enter(self, scope: str) -> None:
        """Names the module that the following operations belong to."""

    def branch(self, condition: T, then: Callable[[], list[T]], otherwise: Callable[[], list[T]]) -> list[T]:
        """The values of `then` where the scalar condition holds, else those of `otherwise` (same shapes)."""

    def one_or_many(self, build: Callable[[], list[T]]) -> list[T]:
        """The values of `build`; a graph of prompts may hold it twice, for one token and for more.

        No product with a matrix is in it: that would be in memory twice.
        """

    def embed(self, ids: T, weight: str) -> T:
        """Rows of an embedding table: [B,S] -> [B,S,D]."""

    def head(self, x: T, weight: str) -> T:
        """Logits x @ W^T with W [V,D]: [B,1,D] -> [B,1,V]."""

    def linear(self, x: T, weight: str) -> T:
        """The product x @ W with W [in,out], plus `weight`_bias where it exists."""

    def rounded(self, x: T, weight: str) -> T:
        """The input of every matrix that shares `weight`'s, rounded once where a quantized form rounds it."""

    def multiply(self, x: T, weight: str) -> T:
        """`linear` on an input that `rounded` gave, or tokens taken from it."""

    def add_rms_norm(self, x: T, update: T | None, weight: str, eps: float) -> tuple[T, T]:
        """(RMSNorm(x + update) * weight, x + update)."""

    def head_norm(self, x: T, weight: str, form: DecoderForm) -> T:
        """RMSNorm of every head of packed x, scale [H*d]."""

    def qk_norm(self, qkv: T, weight: str, form: DecoderForm) -> T:
        """RMSNorm of every head of q and k in packed q | k | v; v passes."""

    def split(self, x: T, sizes: tuple[int, ...]) -> list[T]:
        """Split the last axis."""

    def add(self, x: T, y: T) -> T:
        """The sum x + y."""

    def add_bias(self, x: T, weight: str) -> T:
        """The sum x + a weight over the last axis."""

    def scale_channels(self, x: T, weight: str) -> T:
        """The product x * a weight over the last axis."""

    def sigmoid(self, x: T) -> T:
        """Elementwise."""

    def where(self, mask: T, x: T, other: T | float) -> T:
        """The choice x where mask [1,S,1] else other."""

    def silu_mul(self, x: T) -> T:
        """silu(gate) * up of packed gate | up."""

    def item(self, x: T, index: int) -> T:
        """x[index]."""

    def last_token(self, x: T) -> T:
        """[B,S,D] -> [B,1,D]."""

    def token_index(self, x: T) -> T:
        """0..S-1 of x [1,S,D]: [S] int64."""

    def batch_index(self, position_ids: T, form: DecoderForm) -> T:
        """0..B-1 [B,1] int64: each sequence's row of the rope tables of a decode step."""

    def rope_tables(self, position_ids: T, form: DecoderForm) -> tuple[T, T]:
        """Cos and sin [rows, d/2] of position_ids [B,S] or [3,B,S], int64; rows = B*S.

        Of exact angles, the product of a position and a float32 frequency: within 1e-6 radians at any position.
        """

    def extend_rows(self, table: T, backward: T) -> T:
        """Append as many rows as the backward sequence is long: what its padding indices read."""

    def prepare_layout(self, layout: dict[str, T], form: DecoderForm) -> dict[str, Any]:
        """Layout inputs -> per-schedule and per-shift indices, masks ready to use (done once per graph)."""

    def take(self, x: T, index: T) -> T:
        """Tokens of x by index: [1,S,C] -> [1,N,C]."""

    def take_or_zero(self, x: T, index: T) -> T:
        """Like take; index S reads a zero row."""

    def repeat_heads(self, x: T, times: int, head_dim: int) -> T:
        """Repeat every head of packed x in place (GQA)."""

    def scale_heads(self, x: T, factor: T, form: DecoderForm) -> T:
        """Packed x [B,S,H*d] times factor [B,S,H]."""

    def blend_heads(self, x: T, other: T, share: T, form: DecoderForm) -> T:
        """Packed share * x + (1 - share) * other, share [B,S,H]."""

    def causal_conv(self, x: T, weight: str, past: T | None) -> tuple[T, T]:
        """Depthwise causal conv with weight and weight_bias; past and present [B,K-1,C] (None: zeros)."""

    def rotary(self, x: T, cos: T, sin: T, index: T, heads: int) -> T:
        """Rotate every head of packed x by rows `index` of the tables."""

    def log_decay(self, raw: T, dt_bias: str, scale: str) -> T:
        """Scale * softplus(raw + dt_bias), scale = -exp(A_log)."""

    def linear_attention(
        self, q: T, k: T, v: T, g: T, past: T | None, restart: T | None, form: DecoderForm
    ) -> tuple[T, T]:
        """The gated recurrence (ssm.py) on packed heads.

        restart [N] bool, of the backward direction: the state is dropped before a token, and no token sees itself
        (the forward direction counts it). Its first element is set, and its state is not used.
        """

    def read_state(self, stored: T, form: DecoderForm) -> T:
        """The float32 state [B,M,d,d] of what was stored as `form.state` says."""

    def write_state(self, state: T, form: DecoderForm) -> T:
        """What is stored of a float32 state: rounded once, at the end of a call (linmu.formats.state_precision)."""

    def window_attention(self, q: T, k: T, v: T, bias: T, form: DecoderForm) -> T:
        """Attention inside window rows: packed [1,W*L,...], bias [W,1,L,L] -> [1,W*L,H*d]."""

    def prepare_window(self, x: T, fill: T, form: DecoderForm) -> Any:
        """What all layers of a call on x [B,S,D] need of text windows; fill [B] int64: tokens before the call."""

    def beyond_window(self, recent: Any) -> T:
        """Mask [B,S,1] of `where`: tokens for which one that is no sink has left the text window."""

    def sliding_attention(
        self, qk: T, v: T, past_key: T, past_value: T, recent: Any, form: DecoderForm
    ) -> tuple[T, T, T]:
        """Causal attention over the first text_sinks tokens and the last text_window (linmu.model.sliding).

        past [B,G,N,d]; recent: of `prepare_window`.
        """
