from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.errors import InputError
from linmu.matrix_format import MatrixFormat
from linmu.quantize.auto import Option, ladder, spend
from linmu.quantize.presets import Scheme

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
    chosen = spend(ladders, budget)
    picked = {g: next(o for o in steps if o.scheme == chosen[g]) for g, steps in ladders.items()}
    spent = sum(option.stored_bytes for option in picked.values())
    assert spent <= budget
    for group, steps in ladders.items():
        place = steps.index(picked[group])
        if place + 1 < len(steps):
            assert spent + steps[place + 1].stored_bytes - steps[place].stored_bytes > budget


def test_the_worst_group_is_raised_first() -> None:
    rungs = {"good": 0.01, "bad": 0.5}
    ladders = {group: [Option(INT4, 10, error), Option(None, 30, 0.0)] for group, error in rungs.items()}
    assert spend(ladders, 45) == {"good": INT4, "bad": None}
    assert spend(ladders, 60) == {"good": None, "bad": None}


def test_error_never_beats_the_best_of_all_combinations_by_much() -> None:
    """Greedy spending against all combinations: never better, and here at most twice as bad."""
    ladders = {f"g{i}": ladder(options((5 + i, 7, 9 + 3 * i, 0.4 / (1 + i), 0.1 / (1 + i)))) for i in range(4)}
    for budget in range(30, 110, 7):
        chosen = spend(ladders, budget)
        mine = sum(next(o.error for o in steps if o.scheme == chosen[g]) for g, steps in ladders.items())
        every = [sum(o.error for o in picks) for picks in product(*ladders.values())
                 if sum(o.stored_bytes for o in picks) <= budget]  # fmt: skip
        assert min(every) <= mine + 1e-12 <= 2 * min(every) + 1e-3


def test_a_budget_below_the_smallest_is_refused() -> None:
    with pytest.raises(InputError, match="at least 10"):
        spend({"a": [Option(INT4, 10, 0.1)]}, 9)
