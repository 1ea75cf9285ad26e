"""What an answer is held to while it is generated; linmu.serving.schema makes such constraints."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """Says which tokens may come next; one object for one answer."""

    def allowed(self, logits: np.ndarray) -> np.ndarray:
        """A copy of logits [V] in their dtype with -inf where a token may not come (everywhere, if none may)."""

    def accept(self, token: int) -> None:
        """A token was chosen; raises InputError for one that was not allowed."""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing may follow, so that it ends here, end token or not."""
