"""The one error tree: every message says what went wrong, what was found, what was expected and how to fix it."""

from __future__ import annotations


class LinmuError(Exception):
    """A failure that is the user's to fix; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2

    def __init__(self, what: str, *, got: object = None, expected: object = None, fix: str | None = None):
        super().__init__(_one_line(what, got, expected, fix))
        self.what, self.got, self.expected, self.fix = what, got, expected, fix

    def replace_text(self, old: str, new: str) -> None:
        """Say `new` wherever the message says `old`."""
        told = [None if x is None else str(x).replace(old, new) for x in (self.what, self.got, self.expected, self.fix)]
        self.what, self.got, self.expected, self.fix = str(told[0]), *told[1:]
        self.args = (str(self.args[0]).replace(old, new),)


def _one_line(what: str, got: object, expected: object, fix: str | None) -> str:
    parts = [what.rstrip(".")]
    if got is not None:
        parts.append(f"got {got}")
    if expected is not None:
        parts.append(f"expected {expected}")
    if fix is not None:
        parts.append(f"fix: {fix}")
    return "; ".join(" ".join(str(part).split()) for part in parts)


class InputError(LinmuError):
    """A bad argument, file, folder, prompt or image (exit code 2)."""


class BundleError(InputError):
    """A bundle that breaks its contract: version, hash, path, or graph inputs (exit code 2)."""


class StateError(InputError):
    """A state file that does not belong to the model or is damaged (exit code 2)."""


class MissingComponentError(LinmuError):
    """A package or device component that is not installed (exit code 3)."""

    exit_code = 3

    def __init__(self, component: str, *, needed_for: str, extra: str | None = None, fix: str | None = None):
        super().__init__(
            f"{component} is needed for {needed_for} and is not installed",
            fix=fix or f"pip install 'linmu[{extra}]'",
        )


class DeviceError(LinmuError):
    """A call that the GPU, its driver or TensorRT refused (exit code 2)."""


class CheckFailed(LinmuError):
    """A check ran and failed: parity, golden vectors, doctor (exit code 1)."""

    exit_code = 1
