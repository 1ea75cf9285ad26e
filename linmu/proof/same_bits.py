"""That showing rounded inputs changes nothing: a path with and without it gives the same bits."""

from __future__ import annotations

import numpy as np

from linmu.proof.comparison import take
from linmu.proof.lockstep import Choose, path_player, roll_out
from linmu.proof.paths import Path
from linmu.proof.student_reference import Reference
from linmu.verification.compare import TINY, Meter, Worst
from linmu.verification.report import Check, metered


class SameBits:
    """A path whose inputs are shown beside the same one as it really runs, which chooses the tokens."""

    def __init__(self, reference: Reference, path: Path):
        self.players = [path_player(reference, path, runner) for runner in (path.runner, path.bare)]
        self.meter, self.step = Meter(), -1

    def advance(self, token: int | None) -> np.ndarray:
        """Compare the logits of one step."""
        self.step += 1
        shown, bare = (take(player, token) for player in self.players)
        self._compare(shown, bare, "logits")
        return bare

    def compare_states(self) -> None:
        """Compare all states by now."""
        shown, bare = (player.state() for player in self.players)
        for tensor, value in bare.items():
            self._compare(shown[tensor], value, tensor)

    def _compare(self, shown: np.ndarray, bare: np.ndarray, tensor: str) -> None:
        same = shown.shape == bare.shape and shown.tobytes() == bare.tobytes()
        self.meter.add(Worst(0.0 if same else np.inf, TINY, tensor, self.step, "" if same else "other bits"))


def same_bits(reference: Reference, path: Path, name: str, steps: int, choose: Choose) -> Check:
    """Logits of every call and all states at the end, bit by bit."""
    pair = SameBits(reference, path)
    roll_out(pair.advance, steps, choose)
    pair.compare_states()
    return metered("student", path.bare.backend, name, pair.meter)
