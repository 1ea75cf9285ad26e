"""States in device memory: buffer sets of one layout, read and written by the host only when somebody asks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from linmu.runtimes.tensorrt.cuda import Cuda
from linmu.runtimes.tensorrt.plan import Arena, plan_arena
from linmu.runtimes.tensorrt.residency import Residency, Ticket
from linmu.specs import StateSpec, TensorSpec


def state_arena(specs: tuple[StateSpec, ...]) -> Arena:
    """The layout of one sequence's state, by `past.*` name."""
    shaped = (tuple(1 if isinstance(dim, str) else dim for dim in spec.shape) for spec in specs)
    return plan_arena(TensorSpec(spec.name, spec.dtype, shape) for spec, shape in zip(specs, shaped, strict=True))


class DeviceSets:
    """Buffer sets on the device, two of them working sets; see linmu.runtimes.tensorrt.residency.SetMemory."""

    def __init__(self, cuda: Cuda, specs: tuple[StateSpec, ...]):
        self.cuda, self.specs, self.arena = cuda, specs, state_arena(specs)
        self._bases = [cuda.device_memory(self.arena.nbytes) for _ in range(2)]
        self._pinned: tuple[np.ndarray, int] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one sequence's `past.*`."""
        return {spec.name: self.arena.places[spec.name].shape for spec in self.specs}

    def new_set(self) -> int:
        """A further set's number."""
        self._bases.append(self.cuda.device_memory(self.arena.nbytes))
        return len(self._bases) - 1

    def copy_set(self, target: int, source: int) -> None:
        """Copy a whole set."""
        self.cuda.on_device(self._bases[target], self._bases[source], self.arena.nbytes)

    def clear_set(self, target: int) -> None:
        """Fill a set with zeros."""
        self.cuda.clear(self._bases[target], self.arena.nbytes)

    def addresses(self, source: int) -> dict[str, int]:
        """Where a run reads `past.*` (set `source`) and writes `present.*` (the other working set)."""
        places = {}
        for spec in self.specs:
            offset = self.arena.places[spec.name].offset
            places[spec.name] = self._bases[source] + offset
            places[spec.output] = self._bases[1 - source] + offset
        return places

    def read_set(self, source: int) -> dict[str, np.ndarray]:
        """Copies of a set's tensors."""
        host, address = self._staging()
        self.cuda.to_host(address, self._bases[source], self.arena.nbytes)
        self.cuda.wait()
        return {name: self._view(host, name).copy() for name in self.arena.places}

    def write_set(self, target: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Overwrite a set's tensors."""
        host, address = self._staging()
        self.cuda.wait()  # an interrupted `read_set` may still be writing there
        for name in self.arena.places:
            self._view(host, name)[...] = tensors[name]
        self.cuda.to_device(self._bases[target], address, self.arena.nbytes)
        self.cuda.wait()

    def _view(self, host: np.ndarray, name: str) -> np.ndarray:
        place = self.arena.places[name]
        return host[place.offset : place.offset + place.nbytes].view(place.dtype).reshape(place.shape)

    def _staging(self) -> tuple[np.ndarray, int]:
        if self._pinned is None:
            self._pinned = self.cuda.pinned_memory(self.arena.nbytes)
        return self._pinned


class DeviceState:
    """One sequence's state; see linmu.runtimes.base.RunnerState."""

    def __init__(self, sets: DeviceSets, residency: Residency):
        self._sets, self._residency = sets, residency
        self.ticket = Ticket()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one set."""
        return sum(place.nbytes for place in self._sets.arena.places.values())

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the current tensors."""
        return self._sets.read_set(self._residency.enter(self.ticket))

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        """Overwrite the current tensors."""
        self._sets.write_set(self._residency.enter(self.ticket), tensors)

    def zero(self) -> None:
        """Back to zeros."""
        self._residency.zero(self.ticket)

    def mark(self) -> int:
        """The working set that holds the state; one run leaves it as it is."""
        return self._residency.enter(self.ticket)

    def back_to(self, mark: int) -> None:
        """Take that set as the current one again, once an interrupted run is over."""
        self._residency.now = mark
        self._sets.cuda.wait()
