"""The constant-size state of one layer inside a transformers Cache, so that generate() works unchanged."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class LinMULayer(CacheLayerMixin):
    """Recurrent state of one layer: `state` maps the contract's names to tensors, `tokens` counts those read.

    Derives from CacheLayerMixin, not LinearAttentionLayerMixin: with every layer recurrent, transformers'
    get_seq_length() raises for the latter.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, **_: object):
        super().__init__()
        self.state: dict[str, Tensor] | None = None
        self.tokens = 0

    def lazy_initialization(self, *_: object) -> None:
        """Nothing to allocate: the block makes its own zero state."""
        self.is_initialized = True

    def update(self, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Refuse keys and values: there is no KV cache."""
        raise TypeError("a LinMU layer keeps a recurrent state, not keys and values")

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key length, offset) that transformers' mask builders ask for."""
        return self.tokens + query_length, 0

    def get_max_length(self) -> int:
        """No limit: the state does not grow."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No limit: the state does not grow."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.state, self.tokens = None, 0

    def offload(self) -> None:
        """Move the state to the CPU."""
        self._map(lambda x: x.to("cpu"))

    def prefetch(self) -> None:
        """Nothing to prefetch: the state is small."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams of a beam search."""
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        self._map(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        self._map(lambda x: x[indices])

    def crop(self, max_length: int) -> None:
        """Refuse to go back: a recurrent state cannot be cropped (save a copy before instead)."""
        if max_length not in (0, self.tokens):
            raise ValueError(f"a recurrent state of {self.tokens} tokens cannot be cropped to {max_length}")

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = {name: function(value) for name, value in self.state.items()}


def layer_slot(cache: Cache, index: int) -> LinMULayer:
    """The block's own layer of any transformers cache; takes the place of the empty layer made from the config."""
    while len(cache.layers) <= index:
        cache.layers.append(LinMULayer())
    slot = cache.layers[index]
    if not isinstance(slot, LinMULayer):
        if slot.get_seq_length():
            raise ValueError("this cache holds keys and values of another model")
        slot = cache.layers[index] = LinMULayer()
    return slot


def state_bytes(cache: Cache) -> int:
    """Bytes of all recurrent states in a cache."""
    states = [layer.state or {} for layer in cache.layers if isinstance(layer, LinMULayer)]
    return sum(x.numel() * x.element_size() for state in states for x in state.values())
