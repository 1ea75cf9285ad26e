"""Weights of a decoder that does not fit into memory in float32: layers' matrices are read whenever they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping

from torch import Tensor

from linmu.step.form import DecoderForm, is_matrix


class StreamedWeights(MutableMapping[str, Tensor]):
    """Packed weights by name (form.py); vectors, integers and the tables are held, layers' float matrices are not."""

    def __init__(self, form: DecoderForm):
        self._held: dict[str, Tensor] = {}
        self._thunks: dict[str, Callable[[], Tensor]] = {}
        for name, thunk in form.weights.items():
            if name.startswith("layers.") and is_matrix(name):
                self._thunks[name] = thunk
            else:
                self._held[name] = thunk().detach()

    def stream(self, name: str, thunk: Callable[[], Tensor]) -> None:
        """Make `name` anew with `thunk` whenever it is asked for."""
        self._thunks[name] = thunk

    def __getitem__(self, name: str) -> Tensor:
        """The weight, float32 (integers as they are); raises KeyError."""
        held = self._held.get(name)
        return self._thunks[name]().detach() if held is None else held

    def __setitem__(self, name: str, value: Tensor) -> None:
        """Hold a weight."""
        self._held[name] = value

    def __delitem__(self, name: str) -> None:
        """Drop a weight; raises KeyError."""
        del (self._held if name in self._held else self._thunks)[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is one, without reading it."""
        return name in self._held or name in self._thunks

    def __iter__(self) -> Iterator[str]:
        """All names."""
        yield from {**self._held, **self._thunks}

    def __len__(self) -> int:
        """How many there are."""
        return len({**self._held, **self._thunks})

    def clear(self) -> None:
        """Drop all, without reading them."""
        self._held.clear()
        self._thunks.clear()
