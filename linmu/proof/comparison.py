"""What a path says is held to what the reference says; the tolerance grows with the reference's own noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linmu.reference.eager import StudentRunner
from linmu.verification.compare import (
    Meter,
    Tolerance,
    Worst,
    logits_error,
    logits_noise,
    noise_between,
    states_error,
    top_gap,
)
from linmu.verification.players import Player


@dataclass(frozen=True)
class Moment:
    """What was said in one call or step: logits [V], and all states by `past.*` name in canonical axis order."""

    logits: np.ndarray
    state: dict[str, np.ndarray]

    @property
    def best(self) -> int:
        """The most likely token."""
        return int(self.logits.argmax())


class Comparison:
    """One roll-out beside a reference; its noise is how far the twin, summed in another order, was from it so far."""

    def __init__(self, base: Tolerance, runner: StudentRunner):
        self.base, self.noise, self.quantum = base, np.zeros(2), runner.quantum
        # where inputs are rounded, half precision products are those of the head: nothing of them stays in a state
        self.state_quantum = 0.0 if runner.rounds else runner.quantum

    @property
    def tolerance(self) -> Tolerance:
        """The tolerance by now."""
        return self.base.widened(self.noise)

    def widen(self, reference: Moment, twin: Moment) -> None:
        """Take the noise of one more call or step into account."""
        logits = logits_noise(reference.logits, twin.logits, self.quantum)
        _, state = noise_between(reference.logits, reference.state, twin.logits, twin.state)
        self.noise = np.maximum(self.noise, (logits, max(state, self.state_quantum)))

    def hold(self, meter: Meter, moment: Moment, reference: Moment, step: int) -> None:
        """Every logit, every element of every state, and the most likely token; another one must be a tie."""
        tolerance = self.tolerance
        meter.add(logits_error(moment.logits, reference.logits, tolerance, step), "logits")
        states_error(meter, moment.state, reference.state, tolerance, step)
        if moment.best != reference.best and top_gap(reference.logits) > 2 * tolerance.logits:
            note = f"most likely token {moment.best}, not {reference.best}"
            meter.add(Worst(np.inf, tolerance.logits, "logits", step, note))


def take(player: Player, token: int | None) -> np.ndarray:
    """Let a player read the prompt (None) or take a token -> its logits, copied: the next call may overwrite them."""
    return (player.start() if token is None else player.step(token)).copy()


def take_all(player: Player, token: int | None) -> Moment:
    """The same with all states."""
    return Moment(take(player, token), player.state())
