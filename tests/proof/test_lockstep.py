"""The lockstep by hand-made players: which differences it sees, whom it blames, and what goes on after an error."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from linmu.errors import BundleError
from linmu.proof.comparison import Comparison, Moment
from linmu.proof.lockstep import Lockstep, Track, greedy, roll_out
from linmu.proof.paths import FILES, RUNNER, SESSION, Path
from linmu.verification.compare import WIDEST_LOGITS, Meter, Tolerance

STEPS = 6
VOCAB, STATE = 32, "past.0.recurrent"
BASE = Tolerance()


class ByRule:
    """A player whose logits and states depend on the tokens that it took; `change` is made to each moment."""

    name = "by rule"

    def __init__(self, change=lambda moment, step: moment):
        self.change, self.taken = change, []

    def start(self) -> np.ndarray:
        self.taken = [0]
        return self._logits()

    def step(self, token: int) -> np.ndarray:
        self.taken.append(token)
        return self._logits()

    def state(self) -> dict[str, np.ndarray]:
        return self.moment.state

    def _logits(self) -> np.ndarray:
        random = np.random.default_rng(self.taken)
        logits, state = random.standard_normal(VOCAB), random.standard_normal((1, 2, 3, 4))
        moment = Moment(logits.astype(np.float32), {STATE: state.astype(np.float32)})
        self.moment = self.change(moment, len(self.taken) - 1)
        return self.moment.logits


def logits_off(by: float, step: int):
    """All logits are off by `by` of their standard deviation, from `step` on."""

    def change(moment: Moment, now: int) -> Moment:
        off = np.float32(by * moment.logits.std()) if now >= step else np.float32(0)
        return Moment(moment.logits + off, moment.state)

    return change


def one_state_element(by: float, step: int):
    """One element of the state is off by `by` of its head's largest value, in `step` alone."""

    def change(moment: Moment, now: int) -> Moment:
        state = moment.state[STATE].copy()
        if now == step:
            state[0, 1, 2, 3] += by * np.abs(state[0, 1]).max()
        return Moment(moment.logits, {STATE: state})

    return change


def raising(step: int):
    def change(moment: Moment, now: int) -> Moment:
        if now == step:
            raise BundleError("the graph", got="nothing of use")
        return moment

    return change


def comparison(base: Tolerance = BASE, quantum: float = 0.0, rounds: bool = False) -> Comparison:
    return Comparison(base, SimpleNamespace(quantum=quantum, rounds=rounds))


def track(name: str, player: ByRule) -> Track:
    return Track(Path(name, SimpleNamespace(backend="by hand")), lambda: player)


def lockstep(*changes, references=(None,), twin=None, base: Tolerance = BASE) -> Lockstep:
    """A roll-out of a path for every change, beside references with theirs."""
    players = [ByRule(change) if change else ByRule() for change in (*references, twin, *changes)]
    count = len(references)
    tracks = [track(name, player) for name, player in zip((FILES, RUNNER, SESSION), players[count + 1 :], strict=False)]
    made = Lockstep(players[:count], players[count], tracks, comparison(base))
    roll_out(made.advance, STEPS, greedy)
    return made


def test_what_agrees_passes_and_all_of_it_was_compared() -> None:
    compared = lockstep(None, None, None)
    for one in compared.tracks:
        assert one.meter.ok and one.note == ""
        assert {kind: len(points) for kind, points in one.meter.curves.items()} == {
            "logits": STEPS + 1,
            "states": STEPS + 1,
        }


def test_all_take_the_tokens_of_the_first_reference() -> None:
    players = [ByRule() for _ in range(5)]
    compared = Lockstep(players[:2], players[2], [track(FILES, one) for one in players[3:]], comparison())
    roll_out(compared.advance, STEPS, lambda step, best: (best + step) % VOCAB)
    assert len(players[0].taken) == STEPS + 1 and len(set(players[0].taken)) > 3
    assert all(player.taken == players[0].taken for player in players)


@pytest.mark.parametrize("step", [0, 3, STEPS])
def test_logits_of_one_path_at_any_step_are_found_and_the_others_still_agree(step) -> None:
    compared = lockstep(None, logits_off(3e-4, step), None)
    assert [one.meter.ok for one in compared.tracks] == [True, False, True]
    first = compared.tracks[1].meter.first
    assert first is not None and (first.tensor, first.step) == ("logits", step)


@pytest.mark.parametrize("step", [0, 3, STEPS])
def test_one_element_of_a_state_at_any_step_is_found(step) -> None:
    compared = lockstep(None, None, one_state_element(3e-3, step))
    assert [one.meter.ok for one in compared.tracks] == [True, True, False]
    first = compared.tracks[2].meter.first
    assert first is not None and (first.tensor, first.step) == (STATE, step)
    assert lockstep(one_state_element(5e-4, step)).tracks[0].meter.ok  # within the tolerance


@pytest.mark.parametrize("step", [0, 3])
def test_a_path_that_raises_fails_and_the_others_go_on(step) -> None:
    compared = lockstep(None, raising(step), logits_off(3e-4, STEPS))
    assert [one.meter.ok for one in compared.tracks] == [True, False, False]
    assert compared.tracks[1].note.startswith(f"BundleError at step {step}: the graph")
    assert len(compared.tracks[1].meter.curves.get("logits", {})) == step
    first = compared.tracks[2].meter.first
    assert first is not None and first.step == STEPS and compared.tracks[2].note == ""


def test_a_path_that_cannot_be_opened_fails() -> None:
    def opened():
        raise BundleError("the tokenizer", got="no file")

    one = Track(Path(SESSION, SimpleNamespace(backend="by hand")), opened)
    compared = Lockstep([ByRule()], ByRule(), [one], comparison())
    roll_out(compared.advance, STEPS, greedy)
    assert not one.meter.ok and one.note.startswith("BundleError at step 0: the tokenizer")


def test_a_reference_must_not_raise() -> None:
    with pytest.raises(BundleError):
        lockstep(None, references=(raising(2),))


@pytest.mark.parametrize("reference", [0, 1])
def test_paths_are_held_to_the_student_and_to_its_step_form(reference) -> None:
    """Each within 0.7 tolerances of the one, so that only the other tells."""
    off = [None, None]
    off[reference] = logits_off(1.4e-4, 2)
    compared = lockstep(None, logits_off(0.7e-4, 2), references=tuple(off), twin=off[1])
    assert compared.step_form is not None and not compared.step_form.ok
    assert [one.meter.ok for one in compared.tracks] == [False, True]


def test_the_step_form_is_held_to_the_student() -> None:
    assert lockstep(None).step_form is None
    agreed = lockstep(None, references=(None, None)).step_form
    assert agreed is not None and agreed.ok
    change = one_state_element(3e-3, 4)
    moved = lockstep(None, references=(None, change), twin=change).step_form
    assert moved is not None and moved.first is not None and moved.first.step == 4


def test_tolerances_grow_with_the_noise_so_far_up_to_a_limit() -> None:
    change = logits_off(3e-4, 2)
    assert lockstep(change, twin=logits_off(1e-4, 2)).tracks[0].meter.ok
    assert not lockstep(change, twin=logits_off(1e-4, 3)).tracks[0].meter.ok  # noise that comes later excuses nothing
    noisy = lockstep(logits_off(2 * WIDEST_LOGITS, 2), twin=logits_off(1.0, 0))
    assert not noisy.tracks[0].meter.ok
    assert not lockstep(one_state_element(3e-3, 2), twin=logits_off(1e-4, 0)).tracks[0].meter.ok  # another kind


def test_noise_counts_at_least_a_step_of_half_precision() -> None:
    moment = ByRule()
    moment.start()
    quantum = 2.0**-10
    for rounds, state_quantum in ((True, 0.0), (False, quantum)):  # products of the head alone, or any
        one = comparison(quantum=quantum, rounds=rounds)
        one.widen(moment.moment, moment.moment)
        size = np.abs(moment.moment.logits).max() / moment.moment.logits.std()
        assert one.noise == pytest.approx((quantum * size, state_quantum), rel=1e-5)


@pytest.mark.parametrize(("gap", "agrees"), [(1e-5, True), (1e-2, False)])
def test_another_most_likely_token_must_be_a_tie(gap, agrees) -> None:
    logits = np.linspace(-1, 1, VOCAB).astype(np.float32)
    logits[-2] = logits[-1] - np.float32(gap * logits.std())
    other = logits.copy()
    other[[-2, -1]] = logits[[-1, -2]]
    meter, state = Meter(), {STATE: np.ones((1, 2, 3, 4), np.float32)}
    comparison().hold(meter, Moment(other, state), Moment(logits, state), 3)
    assert meter.ok == agrees
    if not agrees:
        assert meter.worst is not None and meter.worst.element == f"most likely token {VOCAB - 2}, not {VOCAB - 1}"


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_fails(broken) -> None:
    def change(moment: Moment, now: int) -> Moment:
        logits = moment.logits.copy()
        logits[7] = broken if now == 2 else logits[7]
        return Moment(logits, moment.state)

    (one,) = lockstep(change).tracks
    assert not one.meter.ok and one.meter.first is not None and one.meter.first.step == 2
