"""Inputs are never written into: a folder that is written lies beside those that are read."""

from __future__ import annotations

from pathlib import Path

from linmu.errors import InputError


def require_separate(out: Path | str, *sources: Path | str) -> None:
    """Raise InputError when `out` is one of the folders `sources`, lies in one of them, or one lies in it."""
    target = _resolved(out)
    for source in map(_resolved, sources):
        if target == source or target in source.parents or source in target.parents:
            raise InputError(
                f"cannot write to {target}", got=f"input {source}", expected="two folders, neither in the other"
            )


def _resolved(path: Path | str) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links that go in circles (Python < 3.13)
        raise InputError(f"cannot use {str(path)!a:.300}", got=error, fix="choose another place") from error
