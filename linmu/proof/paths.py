"""Ways through a backend that users may take; where inputs are rounded, with those inputs shown to the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.formats.bundle import Bundle
from linmu.runtimes.backends import BACKENDS, named
from linmu.runtimes.base import Runner
from linmu.step.form import DecoderForm

FILES, RUNNER, SESSION = "graph files", "runner", "session"

RoundedInputs = dict[str, np.ndarray]  # by matrix, before they are rounded: [1, S, in] float32


@dataclass(frozen=True)
class Path:
    """A way through a backend, as the Runner that is taken.

    Where inputs are rounded: how the runner shows those of its last call, and the same as it really runs, if that is
    another one. A backend's runner takes states of its own kind only, so that none is a Runner for type checkers.
    """

    name: str
    runner: Any
    rounded_inputs: Callable[[], RoundedInputs] = dict
    bare: Any = None

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"{self.name} [{self.runner.backend}]"


@contextmanager
def plain_paths(runner: Runner) -> Iterator[list[Path]]:
    """The paths of a backend where no inputs are rounded; the last one is a session's."""
    with ExitStack() as stack:
        files = named(BACKENDS[runner.backend].graph_files)
        first = [] if files is None else [Path(FILES, stack.enter_context(files(runner)))]
        yield [*first, Path(RUNNER, runner), Path(SESSION, runner)]


@contextmanager
def exposed_paths(bundle: Bundle, runner: Runner, form: DecoderForm) -> Iterator[list[Path]]:
    """The paths of a backend that shows the inputs which it rounds; the last one is a session's.

    Raises InputError for a backend that does not (TensorRT's engines).
    """
    exposer = named(BACKENDS[runner.backend].exposer)
    if exposer is None:
        raise InputError(
            f"--student with backend {runner.backend} and a bundle that rounds inputs",
            got="a backend that does not show what it rounds",
            fix="--backend onnxruntime, or without --student",
        )
    with exposer(bundle, runner, form) as paths:
        yield paths
