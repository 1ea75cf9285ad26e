"""One call of a teacher's attention, as conversion looks at it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerCall:
    """What one attention of the teacher got and gave for one prompt.

    u [B,S,D]; position_embeddings cos, sin [B or 1,S,d]; heads_out [B,S,H*d] before W_O, target [B,S,D] after it;
    valid [B,S] bool or None.
    """

    u: Tensor
    position_embeddings: tuple[Tensor, Tensor]
    heads_out: Tensor
    target: Tensor
    valid: Tensor | None
