"""What breaking ties either way does to a reference that rounds inputs, and tokens where it does nothing (torch).

A backend without a way to show its codes can be held to a tolerance of float32 only where no code that matters lies
next to a border. Three twins run beside the reference:
    one that sums in another order but takes the reference's codes: tells the noise of every input, by token and block
    of channels (a head's norm makes its own noise large)
    two whose inputs are moved by NOISE_ROOM times that, all up or all down, before they are rounded by themselves
    (ROWS_ROOM times where rows are rounded: XNNPACK's exponentials are further off than sums in another order)
Tokens are chosen so that all three agree with the reference: such a step is sure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.formats.manifest import state_bytes
from linmu.formats.matrix_format import LARGEST, MatrixFormat
from linmu.reference.eager import StudentRunner
from linmu.step import decoder
from linmu.step.torch_formats import Rounding, code_scale, round_input
from linmu.verification.compare import NOISE_ROOM, SMALL_GROUP, TINY, Tolerance, logits_noise, noise_between
from linmu.verification.golden import seeded_ids
from linmu.verification.players import RunnerPlayer

# 1 step of 150 that 4 times the noise calls sure was not, with XNNPACK on the demo student
ROWS_ROOM = 2 * NOISE_ROOM
LEAST_NOISE = 1e-8  # of an input's range: what one call measures may be luck
BLOCK = 16  # channels that share a noise
TRIES = (32, 480)  # candidates for a token, each batch looked at before the next
STATE_ROOM = 2**27  # bytes of the states of as many candidates as are looked at in one call
CHOICES = 4  # of those that are sure there, how many are tried for good


class Ties:
    """The roundings of a reference and of its twins (see above), which must run in this order."""

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.noise: dict[str, Tensor] = {}  # as large as an input

    def reference(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """Rounds by itself."""
        self.inputs[weight] = x
        return round_input(x, format, scale)

    def following(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """Takes the reference's codes; tells how far the inputs are apart."""
        reference_input = self.inputs[weight]
        least = LEAST_NOISE * LARGEST[format.input] * code_scale(reference_input, format, scale)
        self.noise[weight] = _by_block((x - reference_input).abs()).maximum(least)
        return round_input(reference_input, format, scale)

    def moved(self, sign: float) -> Rounding:
        """Rounds by itself what is moved to one side."""

        def rounding(weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
            room = ROWS_ROOM if format.input == "int8_rows" else NOISE_ROOM
            return round_input(x + sign * room * self.noise[weight], format, scale)

        return rounding

    def twins(self, student: PreTrainedModel, runner: StudentRunner) -> tuple[StudentRunner, ...]:
        """The three twins of a reference, which rounds as this says from now on."""
        twins = tuple(StudentRunner(student, runner) for _ in range(3))
        roundings = (self.reference, self.following, self.moved(1.0), self.moved(-1.0))
        for each, rounding in zip((runner, *twins), roundings, strict=True):
            each.ops.rounding = rounding
        return twins


def _by_block(x: Tensor) -> Tensor:
    """The largest value of every BLOCK channels [..., C], at each of them."""
    width = x.shape[-1]
    blocks = torch.nn.functional.pad(x, (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))
    return blocks.amax(-1, keepdim=True).expand_as(blocks).flatten(-2)[..., :width]


class SureTokens:
    """Chooses the tokens of one teacher-forced roll-out so that its steps are sure, as long as that is possible.

    `lost`: a step was not, and the twins are apart from then on. runners: the reference and its twins.
    """

    def __init__(self, runners: Sequence[StudentRunner], avoid: Sequence[int]):
        self.runners, self.avoid, self.lost = runners, list(avoid), False
        self.by_row = any(format.input == "int8_rows" for format in runners[0].form.quantized.values())

    def fresh(self) -> SureTokens:
        """The same for another roll-out."""
        return SureTokens(self.runners, self.avoid)

    def step(self, players: Sequence[RunnerPlayer], wish: int, label: str) -> tuple[int, list[np.ndarray]]:
        """Let the players of all runners take `wish`, or another token that is sure -> the token, all logits."""
        saved = [player.save() for player in players]
        for token in () if self.lost else self._candidates(players, wish, label):
            logits = [player.step(token).copy() for player in players]
            if self.agree(players, logits):
                return token, logits
            for player, moment in zip(players, saved, strict=True):
                player.restore(moment)
        self.lost = True
        return wish, [player.step(wish).copy() for player in players]

    def agree(self, players: Sequence[RunnerPlayer], logits: list[np.ndarray]) -> bool:
        """Whether no twin is far enough from the reference to widen a tolerance."""
        base, state = Tolerance(), players[0].state()
        limit = base.logits / NOISE_ROOM + logits_noise(logits[0], logits[0], self.runners[0].quantum)
        for player, other in zip(players[1:], logits[1:], strict=True):
            noise = noise_between(logits[0], state, other, player.state())
            if not (noise[0] <= limit and NOISE_ROOM * noise[1] <= base.state):
                return False
        return True

    def _candidates(self, players: Sequence[RunnerPlayer], wish: int, label: str) -> Iterator[int]:
        yield wish
        for count in TRIES[: 1 if self.by_row else None]:  # with rows' wider room few are sure: no long search
            random = seeded_ids(f"sure.{label}.{count}", self.runners[0].form.vocab, count)
            tokens = np.where(np.isin(random, self.avoid), 0, random)
            yield from (int(token) for token in tokens[self.noise(players, tokens) <= 1][:CHOICES])

    def noise(self, players: Sequence[RunnerPlayer], tokens: np.ndarray) -> np.ndarray:
        """NOISE_ROOM times what the twins would differ by, in units of the tolerances, for each next token [n]."""
        rows = max(STATE_ROOM // state_bytes(self.runners[0].state_specs), 1)
        return np.concatenate([self._noise(players, tokens[i : i + rows]) for i in range(0, len(tokens), rows)])

    @torch.no_grad()
    def _noise(self, players: Sequence[RunnerPlayer], tokens: np.ndarray) -> np.ndarray:
        logits, present = self._step(self.runners[0], players[0], tokens)
        base, quantum = Tolerance(), self.runners[0].quantum
        std = logits.std(-1, correction=0).clamp(min=TINY)
        limit = base.logits / NOISE_ROOM + quantum * logits.abs().amax(-1) / std
        worst = torch.zeros(len(tokens))
        for twin, player in zip(self.runners[1:], players[1:], strict=True):
            other, state = self._step(twin, player, tokens)
            worst = worst.maximum((other - logits).abs().amax(-1) / std / limit)
            for name, value in present.items():
                worst = worst.maximum(_state_error(name, state[name], value) * NOISE_ROOM / base.state)
        return worst.nan_to_num(nan=torch.inf).numpy()

    @staticmethod
    def _step(runner: StudentRunner, player: RunnerPlayer, tokens: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of a runner from the player's state for every token: logits [n, V], states."""
        count, axes = len(tokens), runner.form.rope_axes
        positions = torch.full((3, count, 1) if axes == 3 else (count, 1), player.position)
        past = {name: x.expand(count, *x.shape[1:]) for name, x in player.handle.tensors.items()}  # type: ignore
        logits, present = decoder.step(
            runner.ops,
            runner.form,
            torch.from_numpy(tokens)[:, None],
            positions,
            past,
            torch.full((count,), player.tokens),
        )
        return logits[:, 0], present


def _state_error(name: str, state: Tensor, expected: Tensor) -> Tensor:
    """Largest error [n] of n sequences' states, in the units of linmu.verification.compare."""
    count = len(expected)
    groups = 1 if name.endswith("conv") else expected.shape[1]
    rows, others = (x.reshape(count, groups, -1) for x in (expected, state))
    size = rows.abs().amax(-1)
    scale = size.maximum(SMALL_GROUP * size.amax(-1, keepdim=True)).clamp(min=TINY)
    return ((others - rows).abs().amax(-1) / scale).amax(-1)
