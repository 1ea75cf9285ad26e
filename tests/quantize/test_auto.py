from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.errors import InputError
from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.presets import Scheme
from linmu.quantize.auto import Option, ladder, outcome, spend
from linmu.quantize.state_choice import BudgetReport, StateOption, choose_state

INT4, INT8 = Scheme(MatrixFormat("int4", 16), "max"), Scheme(MatrixFormat("int8", input="int8"), "max")
SCHEMES = (INT4, INT8, None)

sizes = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.floats(0.01, 1), st.floats(0.01, 1))


def options(sizes: tuple) -> list[Option]:
    a, b, c, first, second = sizes
    return [Option(INT4, a, first), Option(INT8, a + b, second), Option(None, a + b + c, 0.0)]


def test_a_ladder_has_less_error_on_every_rung() -> None:
    worse = Option(INT8, 20, 0.9)
    steps = ladder([Option(None, 40, 0.0), worse, Option(INT4, 10, 0.5)])
    assert [step.scheme for step in steps] == [INT4, None]


@settings(deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), st.integers(0, 200))
def test_the_budget_holds_and_nothing_more_fits(groups: list[tuple], extra: int) -> None:
    ladders = {f"g{i}": ladder(options(found)) for i, found in enumerate(groups)}
    budget = sum(steps[0].stored_bytes for steps in ladders.values()) + extra
    picked = spend(ladders, budget)
    spent = sum(option.stored_bytes for option in picked.values())
    assert spent <= budget
    for group, steps in ladders.items():
        place = steps.index(picked[group])
        if place + 1 < len(steps):
            assert spent + steps[place + 1].stored_bytes - steps[place].stored_bytes > budget


def test_the_worst_group_is_raised_first() -> None:
    rungs = {"good": 0.01, "bad": 0.5}
    ladders = {group: [Option(INT4, 10, error), Option(None, 30, 0.0)] for group, error in rungs.items()}
    assert {group: option.scheme for group, option in spend(ladders, 45).items()} == {"good": INT4, "bad": None}
    assert {group: option.scheme for group, option in spend(ladders, 60).items()} == {"good": None, "bad": None}


def test_error_never_beats_the_best_of_all_combinations_by_much() -> None:
    """Greedy spending against all combinations: never better, and here at most twice as bad."""
    ladders = {f"g{i}": ladder(options((5 + i, 7, 9 + 3 * i, 0.4 / (1 + i), 0.1 / (1 + i)))) for i in range(4)}
    for budget in range(30, 110, 7):
        mine = sum(option.error for option in spend(ladders, budget).values())
        every = [
            sum(o.error for o in picks)
            for picks in product(*ladders.values())
            if sum(o.stored_bytes for o in picks) <= budget
        ]
        assert min(every) <= mine + 1e-12 <= 2 * min(every) + 1e-3


EXACT, HALF = StateOption("fp32", 60, 0.0), StateOption("fp16", 37, 0.03, (0.1, 0.2), 8)
ONE = {"a": [Option(INT4, 10, 0.5), Option(INT8, 20, 0.1), Option(None, 41, 0.0)], "b": [Option(None, 6, 0.0)]}


def chosen(budget: int, *states: StateOption, asked: bool = False) -> BudgetReport:
    return choose_state([outcome(ONE, state, budget) for state in states], budget, asked)


@pytest.mark.parametrize(
    ("budget", "error", "state", "scheme", "said"),
    [
        (53, 0.03, "fp16", INT4, "do not fit beside an fp32 state, which takes 23 bytes more"),
        (62, 0.03, "fp16", INT4, "do not fit"),
        (63, 0.03, "fp16", INT8, "do not fit"),
        (76, 0.03, "fp16", INT8, "its 23 bytes less buy better matrices: a total error of 0.13 instead of 0.5"),
        (76, 0.45, "fp32", INT4, "rounding it would cost more than the 23 bytes that it saves: a total error of 0.5"),
        (84, 0.45, "fp16", None, "a total error of 0.45 instead of 0.5"),
        (86, 0.45, "fp32", INT8, "a total error of 0.1 instead of 0.45"),
        (86, 0.03, "fp16", None, "a total error of 0.03 instead of 0.1"),
        (106, 0.03, "fp16", None, "a total error of 0.03 instead of 0.1"),
        (107, 0.03, "fp32", None, "a total error of 0 instead of 0.03"),
    ],
)
def test_the_state_is_rounded_where_its_bytes_are_worth_more_elsewhere(budget, error, state, scheme, said) -> None:
    found = chosen(budget, EXACT, replace(HALF, error=error))
    assert found.chosen.state.precision == state and found.chosen.schemes == {"a": scheme, "b": None}
    assert said in found.reason, found.reason
    assert found.chosen.bytes <= budget
    assert [outcome["state"]["precision"] for outcome in found.to_json()["outcomes"]] == ["fp32", "fp16"]


@settings(deadline=None)
@given(st.lists(sizes, min_size=1, max_size=4), st.integers(2, 90), st.floats(0, 1), st.integers(-40, 200))
def test_no_other_state_would_have_left_less_error(groups: list[tuple], size: int, error: float, extra: int) -> None:
    ladders = {f"g{i}": ladder(options(found)) for i, found in enumerate(groups)}
    states = StateOption("fp32", size, 0.0), StateOption("fp16", size // 2, error)
    least = sum(steps[0].stored_bytes for steps in ladders.values()) + size // 2
    outcomes = [outcome(ladders, state, least + extra) for state in states]
    if extra < 0:
        with pytest.raises(InputError, match=f"got {least + extra} bytes; expected at least {least} "):
            choose_state(outcomes, least + extra, asked=False)
        return
    found = choose_state(outcomes, least + extra, asked=False).chosen
    assert found.bytes <= least + extra
    assert all(found.error <= other.error for other in outcomes if other.error is not None)
    assert found.state == states[0] or outcomes[0].error is None or found.error < outcomes[0].error


def test_a_state_that_was_asked_for_is_taken_whatever_it_costs() -> None:
    bad = StateOption("fp16", 37, 5.0, (1.0, 2.0), 8)
    assert chosen(300, EXACT, bad).chosen.state is EXACT
    found = chosen(300, bad, asked=True)
    assert found.chosen.state is bad and found.reason == "--state asked for it"
    unknown = StateOption("fp16", 37, nan)
    assert chosen(300, unknown, asked=True).chosen.state is unknown


def test_a_budget_below_the_smallest_is_refused() -> None:
    with pytest.raises(InputError, match=r"got 52 bytes; expected at least 53 \(16 of matrices, 37 of an fp16 state\)"):
        chosen(52, EXACT, HALF)
    with pytest.raises(InputError, match=r"expected at least 76 \(16 of matrices, 60 of an fp32 state\)"):
        chosen(75, EXACT, asked=True)
