"""Reading the files of published data sets: JSON, Parquet (needs pyarrow), and names that stay inside a folder."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from linmu.errors import InputError, MissingComponentError
from linmu.files.regular import regular_file


def json_rows(path: Path, key: str | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON list, or of the list under `key` of a JSON object; raises InputError naming the file."""
    try:
        if not path.exists():
            raise InputError(f"no {path}", fix="check the folder and the split")
        content = json.loads(regular_file(path, "the data set's").read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}", got=error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON", got=error, fix="copy or download the file again") from error
    if key is not None:
        content = content.get(key) if isinstance(content, dict) else None
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f"{path}", expected=f"a list of objects{f' under {key!r}' if key else ''}")
    return content


def parquet_rows(paths: list[Path]) -> list[dict[str, Any]]:
    """The rows of Parquet files, one after the other, as plain Python values.

    Raises MissingComponentError without pyarrow and InputError naming a file that cannot be read.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingComponentError("pyarrow", needed_for="reading Parquet files", extra="eval") from error
    rows: list[dict[str, Any]] = []
    for path in paths:
        try:
            rows += parquet.read_table(regular_file(path, "the data set's")).to_pylist()
        except (OSError, ValueError, ArrowException) as error:
            raise InputError(f"cannot read {path}", got=error, fix="copy or download the file again") from error
    return rows


def field(row: dict[str, Any], name: str, kind: type | tuple[type, ...], place: str) -> Any:
    """A value of a row; raises InputError naming place and field when it is missing or of another type."""
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = " or ".join(item.__name__ for item in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{place}: {name!r}", got=repr(value)[:60], expected=names)
    return value


def texts(row: dict[str, Any], name: str, place: str) -> tuple[str, ...]:
    """A list of texts in a row; raises InputError as `field` does."""
    values = field(row, name, list, place)
    if not all(isinstance(value, str) for value in values):
        raise InputError(f"{place}: {name!r}", got=repr(values)[:60], expected="a list of texts")
    return tuple(values)


def inside(folder: Path, name: str) -> Path:
    """A file named by a data set; raises InputError when the name leads out of the folder.

    Links are followed: copies made by the hub's tools consist of them.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if not name or parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name:
        raise InputError("a data set names a file outside its folder", got=repr(name)[:80], expected="a relative name")
    return folder / parts
