"""A folder of kept states, one state file for each key; processes may share it, and it outlives them.

Files are written whole or not at all. A file that is damaged or not what its name says is removed, and the state is
made anew. Nothing but files of our own name, kind and user is read or removed; links are never followed.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from linmu.errors import InputError, StateError
from linmu.files.leftovers import PARTIAL, clear_leftovers
from linmu.formats.bundle import Bundle
from linmu.formats.state_file import load_state, save_state
from linmu.runtimes.state import StateSnapshot

_NAME = re.compile(r"linmu-prefix-[0-9a-f]{64}\.state")
_LEFT = re.compile(rf"\.(?P<name>{_NAME.pattern})\.[^.]+\.{PARTIAL}")
_KEY = "prefix_key"


class StateFolder:
    """State files of one bundle, at most `byte_limit` bytes of all bundles together; the longest unread ones go first.

    `removed`: files that were damaged; `failures`: states that could not be written, `last_failure` says why. Raises
    InputError for a folder that cannot be made, or that other users may write into.
    """

    def __init__(self, folder: Path, bundle: Bundle, byte_limit: int):
        self.folder, self._bundle, self._limit = Path(folder).absolute(), bundle, byte_limit
        self._specs = [replace(spec, shape=(1, *spec.shape[1:])) for spec in bundle.manifest.state]
        self.removed, self.failures, self.last_failure = 0, 0, ""
        _open_folder(self.folder)
        for name in os.listdir(self.folder):
            if left := _LEFT.fullmatch(name):
                clear_leftovers(self.folder / left["name"])
        self._trim()

    def __contains__(self, key: str) -> bool:
        """Whether a file for the key is there; reading it may still fail."""
        return self._own(self._path(key)) is not None

    def read(self, key: str) -> StateSnapshot | None:
        """The state, or None; a file that does not hold it is removed."""
        path = self._path(key)
        found = self._own(path)
        if found is None:
            return None
        try:
            tensors, values = load_state(path, self._specs, self._bundle.model_hash)
            if values.get(_KEY) != key or values.get("pending") != []:
                raise StateError(f"{path} holds another state")
            os.utime(path)
        except (StateError, OSError):
            self._remove_damaged(path, found)
            return None
        return StateSnapshot(tensors, values["position"], values["tokens"], ())

    def write(self, key: str, snapshot: StateSnapshot) -> None:
        """Keep a state, unless it is there already or is larger than the limit; what fails is counted."""
        path = self._path(key)
        if sum(array.nbytes for array in snapshot.tensors.values()) > self._limit:
            return
        try:
            if self._own(path) is not None:
                os.utime(path)
                return
            if path.is_symlink():
                path.unlink()  # what is written would go where it leads
            position = {"position": snapshot.position, "tokens": snapshot.tokens, "pending": [], _KEY: key}
            specs, model_hash = list(self._bundle.manifest.state), self._bundle.model_hash
            save_state(path, snapshot.tensors, specs=specs, model_hash=model_hash, position=position)
            self._trim()
        except (InputError, OSError) as error:
            self.failures, self.last_failure = self.failures + 1, str(error)

    def bytes_on_disk(self) -> int:
        """Bytes of all files."""
        return sum(found.st_size for _, found in self._files())

    def _path(self, key: str) -> Path:
        path = self.folder / f"linmu-prefix-{key}.state"
        assert _NAME.fullmatch(path.name)
        return path

    def _own(self, path: Path) -> os.stat_result | None:
        """Facts of a regular file of this user; None for anything else."""
        try:
            found = path.lstat()
        except OSError:
            return None
        return found if stat.S_ISREG(found.st_mode) and _ours(found) else None

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        names = [name for name in os.listdir(self.folder) if _NAME.fullmatch(name)]
        facts = [(self.folder / name, self._own(self.folder / name)) for name in names]
        return [(path, found) for path, found in facts if found is not None]

    def _trim(self) -> None:
        """Remove the files that nobody has read or written for the longest, down to the limit."""
        files = sorted(self._files(), key=lambda item: item[1].st_mtime_ns)
        total = sum(found.st_size for _, found in files)
        for path, found in files:
            if total <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= found.st_size

    def _remove_damaged(self, path: Path, found: os.stat_result) -> None:
        """Remove a file, unless another process has put a new one in its place meanwhile."""
        now = self._own(path)
        if now is None or now.st_ino != found.st_ino:
            return
        try:
            path.unlink(missing_ok=True)
            self.removed += 1
        except OSError as error:
            self.failures, self.last_failure = self.failures + 1, str(error)


def _open_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        names = os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    except OSError as error:
        raise InputError(f"cannot keep states in {folder}", got=error.strerror, fix="choose another folder") from error
    if not names:
        raise InputError(f"cannot keep states in {folder}", got="Permission denied", fix="choose another folder")
    if not _ours(found) or (os.name == "posix" and found.st_mode & stat.S_IWOTH):
        raise InputError(
            f"will not keep states in {folder}",
            got="a folder that other users can write into",
            expected="a folder of your own: a state decides what is answered",
            fix=f"chmod o-w {folder}, or choose another one",
        )


def _ours(found: os.stat_result) -> bool:
    return os.name != "posix" or found.st_uid == os.geteuid()
