"""Rotary angles at any position in float32 operators: what graphs and programs compute in place of a float32 product.

A float32 product of position and frequency is wrong by several 1e-3 radians at position 100,000. Here an angle is
counted in turns: a position is written in DIGITS digits of 10 bits, and a table holds, for each digit, the turns that
one of it is worth, modulo 1 (whole turns change nothing). Its coarse part has 13 bits behind the point: products with
digits and their sum need 24 bits at most, so float32 is exact, and whole turns are then taken off without error. The
fine part is below 2^-14 turns and stands in radians. The sum of both is within 1e-6 radians of the exact angle.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

DIGIT = 1024  # values of a digit
DIGITS = 4  # positions below 2^40
COARSE = 8192  # coarse parts are multiples of 1 / COARSE turns
INVERSE_TAU = Fraction("0.15915494309189533576888376337251436203445964574045644874766734406")  # 1 / (2 pi)


def digit_values() -> np.ndarray:
    """What one of each digit stands for: int64 [DIGITS]."""
    return DIGIT ** np.arange(DIGITS, dtype=np.int64)


def digit_rule() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values, next, carry) int64 [DIGITS, 1, 1]: digits of a position p are p // values - carry * (p // next).

    Quotients and products alone, of numbers below 2^31: not every runtime has a remainder of integers.
    """
    values = digit_values().reshape(-1, 1, 1)
    above = np.concatenate([values[1:], values[-1:]])
    return values, above, np.where(above > values, DIGIT, 0)


def turn_tables(frequencies: np.ndarray) -> np.ndarray:
    """float32 [P, DIGITS, 1, 2n] of frequencies [P, n] in radians per position: coarse turns | fine radians.

    With digits [P, DIGITS, rows, 1] of positions [P, rows], sum(digits * tables) over the first two axes is
    coarse | fine [rows, 2n], and an angle is 2 pi (coarse - round(coarse)) + fine. Each frequency has one axis of P.
    """
    axes, count = frequencies.shape
    tables = np.zeros((axes, DIGITS, 1, 2 * count), np.float32)
    for (axis, column), frequency in np.ndenumerate(frequencies):
        for digit, value in enumerate(digit_values()):
            turns = Fraction(float(frequency)) * int(value) * INVERSE_TAU
            turns -= round(turns)
            coarse = Fraction(round(turns * COARSE), COARSE)
            tables[axis, digit, 0, column] = float(coarse)
            tables[axis, digit, 0, count + column] = float((turns - coarse) / INVERSE_TAU)
    return tables
