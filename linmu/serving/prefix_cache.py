"""Kept states: the last ones in memory by bytes, all of them in a folder where one is given."""

from __future__ import annotations

import queue
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock, Thread

from linmu.errors import InputError
from linmu.runtimes.state import StateSnapshot
from linmu.serving.state_folder import StateFolder

MOST_WAITING = 16  # states that wait to be written into the folder


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the start, and what is held now.

    hits, misses: calls of `longest`; folder_hits: hits that were read from the folder; evictions: states that made
    room in memory; bytes: of states in memory; skipped_writes: states not written because the folder is slow;
    failures: states that could not be written, `last_failure` says why; removed: damaged files.
    """

    hits: int
    misses: int
    folder_hits: int
    evictions: int
    entries: int
    bytes: int
    skipped_writes: int = 0
    failures: int = 0
    removed: int = 0
    last_failure: str = ""


class PrefixCache:
    """States by key, at most `byte_limit` bytes of them in memory; any number of threads.

    What is put in must not be changed afterwards: its arrays become read-only. Files are written by a thread of their
    own; `close` (or the end of a `with`) waits for them.
    """

    def __init__(self, byte_limit: int, folder: StateFolder | None = None):
        if type(byte_limit) is not int or byte_limit < 0:
            raise InputError("bytes of kept states", got=repr(byte_limit), expected="0 or more")
        self._limit, self._folder, self._lock = byte_limit, folder, Lock()
        self._states: OrderedDict[str, StateSnapshot] = OrderedDict()
        self._bytes = self._hits = self._misses = self._folder_hits = self._evictions = self._skipped = 0
        self._waiting: queue.Queue[tuple[str, StateSnapshot] | None] = queue.Queue(MOST_WAITING)
        self._writer = Thread(target=self._write, name="linmu-prefix-cache", daemon=True)
        if folder is not None:
            self._writer.start()

    def __enter__(self) -> PrefixCache:
        """The cache itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __contains__(self, key: str) -> bool:
        """Whether the state of this key is in memory."""
        with self._lock:
            return key in self._states

    def longest(self, keys: Sequence[str]) -> tuple[int, StateSnapshot] | None:
        """The last of `keys` whose state is kept, as (its index, the state); None when none is."""
        for index in range(len(keys) - 1, -1, -1):
            if (found := self._get(keys[index])) is not None:
                return index, found
        with self._lock:
            self._misses += bool(keys)
        return None

    def put(self, key: str, snapshot: StateSnapshot) -> None:
        """Keep a state: the ones unused for the longest make room. One that is larger than the limit goes by."""
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                return
            self._insert(key, snapshot)
        if self._folder is not None:
            try:
                self._waiting.put_nowait((key, snapshot))
            except queue.Full:
                with self._lock:
                    self._skipped += 1

    def flush(self) -> None:
        """Wait until everything that was put in is written."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits, and let go of everything in memory."""
        if self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join()
        with self._lock:
            self._states.clear()
            self._bytes = 0

    def statistics(self) -> CacheStatistics:
        """Counts of this moment."""
        folder = self._folder
        with self._lock:
            return CacheStatistics(
                self._hits,
                self._misses,
                self._folder_hits,
                self._evictions,
                len(self._states),
                self._bytes,
                self._skipped,
                *((folder.failures, folder.removed, folder.last_failure) if folder else ()),
            )

    def _get(self, key: str) -> StateSnapshot | None:
        with self._lock:
            if (found := self._states.get(key)) is not None:
                self._states.move_to_end(key)
                self._hits += 1
                return found
        found = self._folder.read(key) if self._folder is not None else None
        if found is not None:
            with self._lock:
                self._hits, self._folder_hits = self._hits + 1, self._folder_hits + 1
                if key not in self._states:
                    self._insert(key, found)
        return found

    def _insert(self, key: str, snapshot: StateSnapshot) -> None:
        """Keep a new state in memory; the lock is held."""
        for array in snapshot.tensors.values():
            array.flags.writeable = False
        size = state_bytes(snapshot)
        if size > self._limit:
            return
        self._states[key] = snapshot
        self._bytes += size
        while self._bytes > self._limit:
            _, gone = self._states.popitem(last=False)
            self._bytes -= state_bytes(gone)
            self._evictions += 1

    def _write(self) -> None:
        """The writer's thread: until None comes."""
        assert self._folder is not None
        while (item := self._waiting.get()) is not None:
            try:
                self._folder.write(*item)
            finally:
                self._waiting.task_done()
        self._waiting.task_done()


def state_bytes(snapshot: StateSnapshot) -> int:
    """Bytes of a state's tensors."""
    return sum(array.nbytes for array in snapshot.tensors.values())
