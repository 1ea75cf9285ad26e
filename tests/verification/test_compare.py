from __future__ import annotations

import math

import numpy as np
import pytest

from linmu.formats.state_precision import canonical, from_canonical
from linmu.verification import golden
from linmu.verification.compare import (
    Meter,
    Tolerance,
    Worst,
    array_error,
    group_scale,
    logits_error,
    logits_noise,
    noise_between,
    snapshot_error,
    states_error,
    top_gap,
)
from linmu.verification.golden import (
    Projector,
    Snapshot,
    forced_ids,
    grouped,
    seeded_bytes,
    signs,
)
from linmu.verification.levels import greedy_note
from tests.bundles import CONV_LAST, RECURRENT

TOLERANCE = Tolerance()
RECURRENT_NAME, CONV_NAME = RECURRENT.name, CONV_LAST.name


def random_state(seed=0):
    rng = np.random.default_rng(seed)
    heads = rng.standard_normal((1, 6, 5, 7)) * np.logspace(0, -2, 6)[:, None, None]
    return {RECURRENT_NAME: heads.astype(np.float32), CONV_NAME: rng.standard_normal((1, 50, 3)).astype(np.float32)}


def snapshot(state, full=False):
    rows = Projector().state(state)
    return Snapshot({k: v[0] for k, v in rows.items()}, {k: v[1] for k, v in rows.items()}, state if full else {})


def changed(name, place, value):
    state = {key: array.copy() for key, array in random_state().items()}
    state[name][place] = value
    return state


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_never_passes(bad):
    expected = np.linspace(-2, 3, 11, dtype=np.float32)
    got = expected.copy()
    got[7] = bad
    found = logits_error(got, expected, TOLERANCE)
    assert not found.ok and found.error == math.inf and "[7]" in found.element
    meter = Meter()
    states_error(meter, changed(RECURRENT_NAME, (0, 5, 1, 2), bad), random_state(), TOLERANCE)
    assert not meter.ok
    for full in (False, True):
        meter, broken = Meter(), changed(CONV_NAME, (0, 3, 1), bad)
        snapshot_error(meter, broken, snapshot(random_state(), full), Projector(), TOLERANCE)
        assert not meter.ok and meter.worst.tensor == CONV_NAME
    assert not array_error(expected, got, 1.0, "x", 1.0).ok  # a broken reference proves nothing either
    assert not Worst(math.nan, 1.0, "x").ok


def test_the_worst_element_decides_not_the_mean():
    expected = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    got = expected.copy()
    got[1234] += 2e-4
    found = logits_error(got, expected, TOLERANCE)
    assert not found.ok and "[1234]" in found.element and found.error == pytest.approx(2e-4, rel=0.05)
    assert logits_error(expected + np.float32(5e-5), expected, TOLERANCE).ok


def test_a_small_head_is_held_to_its_own_scale():
    state = random_state()
    small = float(np.abs(state[RECURRENT_NAME][0, 5]).max())
    moved = changed(RECURRENT_NAME, (0, 5, 2, 3), state[RECURRENT_NAME][0, 5, 2, 3] + 2e-3 * small)
    meter = Meter()
    states_error(meter, moved, state, TOLERANCE, step=4)
    assert not meter.ok and meter.worst.tensor == RECURRENT_NAME and meter.first.step == 4
    assert 2e-3 * small < 1e-3 * np.abs(state[RECURRENT_NAME]).max() / 10  # the tensor's scale would have passed it
    assert group_scale(np.array([8.0, 1e-9])).tolist() == [8.0, 8e-3]


def test_noise_widens_a_tolerance_and_never_narrows_it():
    assert TOLERANCE.widened((1e-6, 1e-6)) == TOLERANCE == TOLERANCE.widened((math.nan, math.inf))
    assert TOLERANCE.widened((1e-3, 1e-6)) == Tolerance(logits=4e-3)
    assert TOLERANCE.widened((0.0, 1e-3)) == Tolerance(state=4e-3)
    assert TOLERANCE.widened((1.0, 1.0)) == Tolerance(logits=0.1, state=1e-2)  # there is a ceiling


def test_nothing_compared_is_not_ok():
    assert not Meter().ok


def test_missing_and_misshapen_states_fail():
    state, meter = random_state(), Meter()
    with pytest.raises(KeyError):
        states_error(meter, {CONV_NAME: state[CONV_NAME]}, state, TOLERANCE)
    turned = {**state, RECURRENT_NAME: state[RECURRENT_NAME].swapaxes(2, 3)}
    states_error(meter, turned, state, TOLERANCE)
    assert not meter.ok and "shape" in meter.worst.element


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("place", [(0, 0, 4, 6), (0, 3, 0, 0), (0, 5, 2, 2)])
def test_projections_see_a_change_of_one_element(place, full):
    state = random_state()
    norm = np.linalg.norm(state[RECURRENT_NAME][0, place[1]])
    moved = changed(RECURRENT_NAME, place, state[RECURRENT_NAME][place] + 4e-3 * norm)
    good, bad = Meter(), Meter()
    snapshot_error(good, state, snapshot(state, full), Projector(), TOLERANCE)
    snapshot_error(bad, moved, snapshot(state, full), Projector(), TOLERANCE)
    assert good.ok and good.worst.error == 0 and not bad.ok and bad.worst.tensor.startswith(RECURRENT_NAME)


def test_projections_see_two_heads_that_changed_places():
    state = random_state()
    swapped = {**state, RECURRENT_NAME: state[RECURRENT_NAME][:, [1, 0, 2, 3, 4, 5]]}
    meter = Meter()
    snapshot_error(meter, swapped, snapshot(state), Projector(), TOLERANCE)
    assert not meter.ok


def test_canonical_order_and_back():
    conv = np.arange(150, dtype=np.float32).reshape(1, 3, 50)
    stored = {RECURRENT_NAME: random_state()[RECURRENT_NAME], CONV_NAME: conv}
    specs = (CONV_LAST, RECURRENT)
    ordered = canonical(specs, stored)
    assert ordered[CONV_NAME].shape == (1, 50, 3) and ordered[CONV_NAME][0, 7, 2] == stored[CONV_NAME][0, 2, 7]
    assert grouped(CONV_NAME, ordered[CONV_NAME]).shape == (1, 150)
    assert grouped(RECURRENT_NAME, ordered[RECURRENT_NAME]).shape == (6, 35)
    for name, array in from_canonical(specs, ordered).items():
        np.testing.assert_array_equal(array, stored[name])


def test_seeded_values_never_change():
    # Golden files of older releases were made with exactly these.
    assert seeded_bytes("noise", 4).tolist() == [int(x) for x in bytes.fromhex(FIRST_NOISE)]
    assert set(np.unique(signs("signs.9", 9)).tolist()) == {-1.0, 1.0}
    assert forced_ids(11, 50, avoid=[3]).max() < 11 and 3 not in forced_ids(11, 50, avoid=[3])
    assert np.asarray(golden.synthetic_picture()).shape == (100, 140, 3)


FIRST_NOISE = "5f0edeee"


class Script:
    """A player that gives prepared logits; remembers what it was fed."""

    name = "script"

    def __init__(self, rows):
        self.rows, self.fed = rows, []

    def start(self):
        return self.rows[0]

    def step(self, token):
        self.fed.append(token)
        return self.rows[len(self.fed)]


QUIET = [0.0] * 4


def logits_for(best, lead):
    logits = np.linspace(-1, 0, 7, dtype=np.float32)
    logits[[best, (best + 1) % 7]] = 3 + lead, 3
    return logits


def test_greedy_divergence_fails_and_a_tie_is_told_and_goes_on():
    reference = [logits_for(2, 1.0), logits_for(4, 1e-5), logits_for(1, 1.0), logits_for(5, 1.0)]
    tokens, gaps = [2, 4, 1, 5], [top_gap(row) for row in reference]
    meter, same = Meter(), Script(reference)
    assert greedy_note(meter, same, tokens, gaps, QUIET, TOLERANCE) == "" and meter.ok and same.fed == [2, 4, 1]
    other = [reference[0], logits_for(5, 1e-5), reference[2], reference[3]]
    meter, tie = Meter(), Script(other)
    assert "tie" in greedy_note(meter, tie, tokens, gaps, QUIET, TOLERANCE) and meter.ok and tie.fed == [2, 4, 1]
    wrong = [*reference[:2], logits_for(0, 1e-5), reference[3]]
    meter = Meter()
    assert "diverges at token 2" in greedy_note(meter, Script(wrong), tokens, gaps, QUIET, TOLERANCE) and not meter.ok
    broken = [reference[0], np.full(7, np.nan, np.float32)]
    meter = Meter()
    assert "not finite" in greedy_note(meter, Script(broken), tokens, gaps, QUIET, TOLERANCE) and not meter.ok


def test_noise_counts_at_least_one_quantum():
    state, logits = random_state(), np.array([1.0, -2.0, 8.0, 0.5], np.float32)
    std = float(logits.std())
    assert noise_between(logits, state, logits, state) == (0.0, 0.0)
    quantum = 2.0**-10
    found = noise_between(logits, state, logits, state, quantum)
    assert found == (pytest.approx(8 * quantum / std), quantum)  # the largest logit's neighbour
    moved = logits + np.float32(0.25)
    assert logits_noise(logits, moved, quantum) == pytest.approx(0.25 / std, rel=1e-6)  # what was seen is more
