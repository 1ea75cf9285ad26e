"""The losses, as sums over tokens: dividing by counts over a whole step makes them independent of how it is split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

FLOOR = 0.1  # of the sample's typical token: a token that attention leaves almost alone must not rule the loss


@dataclass(frozen=True)
class TopK:
    """A teacher's distributions by their largest logits: values, indices [N,k]; log_z [N], at temperature 1 or T."""

    values: Tensor
    indices: Tensor
    log_z: Tensor


def token_scale(target: Tensor, valid: Tensor) -> Tensor:
    """1 / |t|^2 of every token, 0 on padding: target [B,S,D], valid [B,S] bool -> [B,S] float32.

    |t|^2 counts as at least FLOOR times the geometric mean of its sample's tokens: not the mean, which the few tokens
    of huge activations in large models would rule.
    """
    energy = target.float().square().sum(-1)
    logs = energy.clamp(min=1e-12).log() * valid
    typical = (logs.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)).exp()
    return valid / torch.maximum(energy, FLOOR * typical)


def nmse_sum(student: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """Sum over tokens of |s - t|^2 / |t|^2 in float32: student, target [B,S,D], scale of `token_scale` -> scalar."""
    return ((student.float() - target.float()).square().sum(-1) * scale).sum()


def kl_sum(student: Tensor, teacher: Tensor | TopK, temperature: float = 1.0) -> Tensor:
    """T^2 * sum over rows of KL(teacher || student), in float32: student logits [N,V] -> scalar.

    teacher: logits [N,V], or a TopK whose log_z was taken at the same temperature. With a TopK everything outside its
    tokens counts as one outcome on both sides: a lower bound of the full KL, 0 where the distributions agree.
    """
    log_q = (student.float() / temperature).log_softmax(-1)
    if isinstance(teacher, Tensor):
        log_p = (teacher.float() / temperature).log_softmax(-1)
        return temperature**2 * functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    log_p = teacher.values.float() / temperature - teacher.log_z.float()[:, None]
    log_q = log_q.gather(1, teacher.indices)
    p = log_p.exp()
    head = (p * (log_p - log_q)).sum(-1)
    rest_p, rest_q = _log_rest(log_p), _log_rest(log_q)
    tail = rest_p.exp() * (rest_p - rest_q)
    return temperature**2 * (head + tail).sum()


def _log_rest(logs: Tensor) -> Tensor:
    """log(1 - sum exp(logs)) over the last axis, bounded where rounding leaves nothing."""
    return torch.log1p(-logs.logsumexp(-1).exp().clamp(max=1 - 1e-6))


def top_k(logits: Tensor, k: int, temperature: float) -> TopK:
    """The k largest logits of every row of [N,V], with the log of the whole row's sum at `temperature`."""
    values, indices = logits.float().topk(min(k, logits.shape[-1]), -1)
    return TopK(values, indices, (logits.float() / temperature).logsumexp(-1))


def ce_sum(student: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies of rows: student logits [N,V], labels [N] -> scalar float32."""
    return functional.cross_entropy(student.float(), labels, reduction="sum")
