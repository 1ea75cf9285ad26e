"""Reading one JSON object of a manifest strictly: every key known, none missing, each value of its very type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from linmu.errors import BundleError, InputError

MANIFEST_NAME = "manifest.json"


def check_keys(data: Any, kinds: Mapping[str, type], where: str, optional: Iterable[str] = ()) -> None:
    """Raise BundleError unless `data` is an object of exactly these keys, types, and no negative number."""
    if not isinstance(data, dict):
        raise refused(where, type(data).__name__, "a JSON object")
    if unknown := sorted(set(data) - set(kinds)):
        raise refused(where, "unknown key " + ", ".join(map(repr, unknown)))
    if missing := sorted(set(kinds) - set(data) - set(optional)):
        raise refused(where, "no key " + ", ".join(map(repr, missing)))
    for name, value in data.items():
        if type(value) is not kinds[name]:  # exact: True is no int here
            raise refused(f"{where}.{name}", f"{type(value).__name__} {value!r:.60}", kinds[name].__name__)
        if type(value) is int and value < 0:
            raise refused(f"{where}.{name}", value, "a count")


def check_names(values: list[Any], where: str, empty: bool = False) -> list[str]:
    """The values, if all are texts, none of them empty unless `empty`; raises BundleError otherwise."""
    if not all(isinstance(value, str) and (value or empty) for value in values):
        raise refused(where, values, "a list of names")
    return values


@contextmanager
def read_as_manifest() -> Iterator[None]:
    """What a reader of its own says of a part (InputError), as a BundleError that names the manifest."""
    try:
        yield
    except InputError as error:
        raise BundleError(
            f"{MANIFEST_NAME}: {error.what}", got=error.got, expected=error.expected, fix="export the bundle again"
        ) from error


def refused(where: str, got: object, expected: object = None) -> BundleError:
    """The error for a manifest's field that cannot be read."""
    return BundleError(f"{MANIFEST_NAME}: {where}", got=got, expected=expected, fix="export the bundle again")
