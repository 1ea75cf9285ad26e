"""The protobuf wire format, as far as reading ONNX files without the onnx package needs it."""

from __future__ import annotations

from collections.abc import Iterator

MOST_DIGITS = 70  # bits of a number on the wire, rounded up to whole bytes of seven


def fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(field number, bytes of a length-delimited or fixed field, or an integer); raises ValueError when malformed."""
    place = 0
    while place < len(message):
        tag, place = varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = varint(message, place)
            yield number, value
            continue
        if kind == 2:
            length, place = varint(message, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if number == 0 or place + length > len(message):
            raise ValueError(f"a field that ends outside at byte {place}")
        yield number, message[place : place + length]
        place += length


def grouped(message: memoryview, known: frozenset[int]) -> dict[int, list[memoryview | int]]:
    """Values by field number; raises ValueError for a field that is not `known`."""
    groups: dict[int, list[memoryview | int]] = {}
    for number, value in fields(message):
        if number not in known:
            raise ValueError(f"a field {number}, which no graph here has")
        groups.setdefault(number, []).append(value)
    return groups


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """(number, place behind it)."""
    value = 0
    for shift in range(0, MOST_DIGITS, 7):
        if place >= len(message):
            raise ValueError("a number that is cut off")
        byte = message[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise ValueError(f"a number of more than ten bytes at byte {place}")


def integers(values: list[memoryview | int]) -> list[int]:
    """A repeated int64, packed or not."""
    numbers = list[int]()
    for value in values:
        if isinstance(value, int):
            numbers.append(signed(value))
            continue
        place = 0
        while place < len(value):
            number, place = varint(value, place)
            numbers.append(signed(number))
    return numbers


def signed(value: int) -> int:
    """An int64 as it stands on the wire (two's complement of 64 bits)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
