"""The M-MATE block by its formulas: slow float64 numpy loops over one prompt, independent of the code under test.

Nothing here is shared with linmu but the parameters' names, MMateConfig and a span's positions and grid.
    H, G, d   query heads, key/value heads, head size          r = H / G
    spans     [(positions, (t, h, w)), ...]: token indices of each span in raster order
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from linmu.config import MMateConfig

Array = np.ndarray
Spans = list[tuple[list[int], tuple[int, int, int]]]


def arrays(module: nn.Module) -> dict[str, Array]:
    """All parameters as float64 arrays."""
    return {name: value.detach().double().numpy() for name, value in module.named_parameters()}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x) + eps) * weight


def rotate_half(x: Array, cos: Array, sin: Array) -> Array:
    """RoPE as the papers of the teachers write it: x [d], cos and sin [d]."""
    half = len(x) // 2
    turned = np.concatenate([-x[half:], x[:half]])
    return x * cos + turned * sin


def gated_scan(q: Array, k: Array, v: Array, g: Array, state: Array, scale: float, strict: bool = False):
    """S = exp(g) S + k v^T, y = scale S^T q: q [n,H,dk], k [n,H,dk], v [n,H,dv], g [n,H], state [H,dk,dv] -> y, state.

    `strict`: the current token is left out of its own output.
    """
    y, state = np.zeros((len(q), q.shape[1], v.shape[2])), state.copy()
    for t in range(len(q)):
        for h in range(q.shape[1]):
            decayed = np.exp(g[t, h]) * state[h]
            state[h] = decayed + np.outer(k[t, h], v[t, h])
            y[t, h] = scale * (decayed if strict else state[h]).T @ q[t, h]
    return y, state


def delta_scan(q: Array, k: Array, v: Array, g: Array, beta: Array, state: Array, scale: float, strict: bool = False):
    """S = (I - beta k k^T) exp(g) S + beta k v^T, y = scale S^T q; shapes as in `gated_scan`, beta [n,H].

    `strict`: the state is read when it has decayed and before the current token is written.
    """
    y, state = np.zeros((len(q), q.shape[1], v.shape[2])), state.copy()
    for t in range(len(q)):
        for h in range(q.shape[1]):
            decayed, strength, key = np.exp(g[t, h]) * state[h], beta[t, h], k[t, h]
            kept = np.eye(len(key)) - strength * np.outer(key, key)
            state[h] = kept @ decayed + strength * np.outer(key, v[t, h])
            y[t, h] = scale * (decayed if strict else state[h]).T @ q[t, h]
    return y, state


def of_length_one(x: Array) -> Array:
    """x [...,d] over its length, smoothed at 0."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def depthwise_conv(x: Array, weight: Array, bias: Array) -> Array:
    """Causal: x [n,C], weight [C,1,K], the last tap is the current element; zeros before the first."""
    taps, y = weight.shape[2], np.tile(bias, (len(x), 1))
    for n in range(len(x)):
        for j in range(taps):
            if n - j >= 0:
                y[n] += weight[:, 0, taps - 1 - j] * x[n - j]
    return y


def scan_order(grid: tuple[int, int, int], schedule: int, scan: str) -> list[int]:
    """Raster indices in the order of the scan: consecutive lines, and slabs of lines, run in opposite directions."""
    t, h, w = grid
    if scan == "raster":
        return list(range(t * h * w))
    slow, middle, fast = ("thw", "twh", "hwt", "wht")[schedule]
    size, visited = {"t": t, "h": h, "w": w}, []
    down, right = True, True
    for a in range(size[slow]):
        for b in range(size[middle]) if down else reversed(range(size[middle])):
            for c in range(size[fast]) if right else reversed(range(size[fast])):
                at = {slow: a, middle: b, fast: c}
                visited.append((at["t"] * h + at["h"]) * w + at["w"])
            right = not right
        down = not down
    return visited


def window_of(raster: int, grid: tuple[int, int, int], sizes: tuple[int, int, int], shifted: bool) -> tuple[int, ...]:
    """Which window a token of a span falls into; a dimension no larger than its window is one window."""
    t, h, w = grid
    place, found = (raster // (h * w), raster // w % h, raster % w), []
    for x, length, size in zip(place, grid, sizes, strict=True):
        offset = size - size // 2 if shifted and size > 1 else 0
        found.append(0 if length <= size else (x + offset) // size)
    return tuple(found)


@dataclass(frozen=True)
class Reference:
    """One block: its parameters, sizes and settings."""

    weights: dict[str, Array]
    heads: int
    kv_heads: int
    head_dim: int
    mmate: MMateConfig
    layer: int
    qk_norm_eps: float

    @classmethod
    def of(cls, block) -> Reference:
        """Read a linmu block's parameters and sizes."""
        d = block.dims
        return cls(arrays(block), d.heads, d.kv_heads, d.head_dim, block.mmate, block.layer_idx, d.qk_norm_eps)

    def linear(self, name: str, x: Array) -> Array:
        y = x @ self.weights[name + ".weight"].T
        return y + self.weights[name + ".bias"] if name + ".bias" in self.weights else y

    def project(self, branch: str, u: Array) -> list[Array]:
        """q [S,H,d], k and v [S,G,d] before the rotation."""
        out = []
        for letter, heads in zip("qkv", (self.heads, self.kv_heads, self.kv_heads), strict=True):
            x = self.linear(f"{branch}.{letter}_proj", u).reshape(len(u), heads, self.head_dim)
            norm = self.weights.get(f"{branch}.{letter}_norm.weight")
            if norm is not None:
                x = np.array([[rms_norm(head, norm, self.qk_norm_eps) for head in token] for token in x])
            out.append(x)
        return out

    def direction(self, name: str, tokens: list[int], u: Array, qkv: Array, cos: Array, sin: Array, strict: bool):
        """One recursion over `tokens` in this order, from an empty state -> normed y [n,H,d], state, conv tail."""
        p = {key.removeprefix(name + "."): w for key, w in self.weights.items() if key.startswith(name + ".")}
        H, G, d = self.heads, self.kv_heads, self.head_dim
        x = depthwise_conv(qkv[tokens], p["conv_weight"], p["conv_bias"])
        q = x[:, : H * d].reshape(-1, H, d)
        k = x[:, H * d : (H + G) * d].reshape(-1, G, d)
        v = x[:, (H + G) * d :].reshape(-1, G, d)
        if self.mmate.rope:
            q, k = (
                np.array([[rotate_half(a, cos[t], sin[t]) for a in row] for t, row in zip(tokens, z, strict=True)])
                for z in (q, k)
            )
        delta = np.log1p(np.exp(u[tokens] @ p["dt_proj.weight"].T + p["dt_bias"]))
        g = delta * -np.exp(p["a_log"])
        k, v = np.repeat(k, H // G, 1), np.repeat(v, H // G, 1)
        wide_g = np.repeat(g, H // g.shape[1], 1)
        start = np.zeros((H, d, d))
        if self.mmate.rule == "gated":
            y, state = gated_scan(q, k, v, wide_g, start, d**-0.5, strict)
        else:
            beta = sigmoid(u[tokens] @ p["beta_proj.weight"].T + p["beta_proj.bias"])
            beta = np.repeat(beta, H // beta.shape[1], 1)
            y, state = delta_scan(of_length_one(q), of_length_one(k), v, wide_g, beta, start, 1.0, strict)
        if "skip" in p:
            y = y + p["skip"][:, None] * v
        eps, weight = self.mmate.norm_eps, p["norm.weight"]
        y = np.array([[rms_norm(y[t, h], weight[h], eps) for h in range(H)] for t in range(len(y))])
        padded = np.concatenate([np.zeros((self.mmate.taps - 1, qkv.shape[1])), qkv[tokens]])
        return y, state[:: H // g.shape[1]], padded[len(tokens) :].T

    def flex(self, u: Array, cos: Array, sin: Array, spans: Spans) -> tuple[Array, dict[str, Array]]:
        """Flex-MA without W_O -> [S,H,d], final state."""
        qkv = np.concatenate([x.reshape(len(u), -1) for x in self.project("flex", u)], 1)
        schedule, order = self.layer % 4, list(range(len(u)))
        scans = [[positions[i] for i in scan_order(grid, schedule, self.mmate.scan)] for positions, grid in spans]
        for (positions, _), scan in zip(spans, scans, strict=True):
            for place, token in zip(positions, scan, strict=True):
                order[place] = token
        visited, state, conv = self.direction("scan_forward", order, u, qkv, cos, sin, strict=False)
        y = np.empty_like(visited)
        y[order] = visited
        if "gate_backward.weight" not in self.weights:
            return y, {"conv": conv, "recurrent": state}
        gate_f, gate_b = sigmoid(self.linear("gate_forward", u)), sigmoid(self.linear("gate_backward", u))
        for scan in scans:
            back, _, _ = self.direction("scan_backward", scan[::-1], u, qkv, cos, sin, strict=True)
            for token, found in zip(scan[::-1], back, strict=True):
                y[token] = gate_f[token][:, None] * y[token] + gate_b[token][:, None] * found
        return y, {"conv": conv, "recurrent": state}

    def sees(self, length: int, spans: Spans) -> Array:
        """Whom each token attends to in the second branch [S,S] bool, one pair at a time."""
        m, mask = self.mmate, np.zeros((length, length), bool)
        vision = {token for positions, _ in spans for token in positions}
        sizes = (m.window_frames, m.window_rows, m.window_columns)
        for i in range(length):
            if m.text_window and not (m.local_swin and i in vision):
                mask[i, max(0, i - m.text_window + 1) : i + 1] = True
                mask[i, : min(m.text_sinks, i + 1)] = True
        for positions, grid in spans if m.local_swin else []:
            windows = [window_of(n, grid, sizes, self.layer % 2 == 1) for n in range(len(positions))]
            for i, mine in zip(positions, windows, strict=True):
                for j, other in zip(positions, windows, strict=True):
                    mask[i, j] = mine == other and (j <= i or not m.causal_windows)
        return mask

    def attend(self, u: Array, cos: Array, sin: Array, mask: Array, branch: str = "swin") -> Array:
        """Dense softmax attention of a branch's projections under a mask -> [S,H,d]; rows without keys are 0."""
        q, k, v = self.project(branch, u)
        y = np.zeros_like(q)
        for i in range(len(u)):
            keys = np.flatnonzero(mask[i])
            for h in range(self.heads if len(keys) else 0):
                group = h // (self.heads // self.kv_heads)
                query = rotate_half(q[i, h], cos[i], sin[i])
                scores = np.array([query @ rotate_half(k[j, group], cos[j], sin[j]) for j in keys])
                y[i, h] = softmax(scores * self.head_dim**-0.5) @ v[keys, group]
        return y

    def forward(self, u: Array, cos: Array, sin: Array, spans: Spans) -> tuple[Array, dict[str, Array]]:
        """The whole block on one prompt: u [S,D], cos and sin [S,d] -> y [S,D], final conv and recurrent state."""
        mixed, state = self.flex(u, cos, sin, spans)
        if "alpha.weight" in self.weights:
            mask = self.sees(len(u), spans)
            share = np.where(mask.any(1)[:, None], sigmoid(self.linear("alpha", u)), 1.0)[..., None]
            vision = {token for positions, _ in spans for token in positions} if self.mmate.local_swin else set()
            for i in range(len(u)):
                if self.mmate.text_window and i not in vision and mask[i, : i + 1].all():
                    share[i] = 0.0  # the window has seen all
            text = np.array([i not in vision for i in range(len(u))])[:, None]
            if self.mmate.text_window and self.mmate.text_window_projections == "shared":
                attended = self.attend(u, cos, sin, mask & text, "flex")
                if vision:
                    attended = attended + self.attend(u, cos, sin, mask & ~text)
            else:
                attended = self.attend(u, cos, sin, mask)
            mixed = share * mixed + (1 - share) * attended
        return self.linear("o_proj", mixed.reshape(len(u), -1)), state
