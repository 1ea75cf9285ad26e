"""Where requests wait for the model thread, and the only thing that it shares with others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Condition
from typing import TYPE_CHECKING, Any

from linmu.runtimes.base import Runner
from linmu.serving.counters import Counters
from linmu.serving.request import EngineClosed, Limits, QueueFull

if TYPE_CHECKING:
    from collections.abc import Iterator

    from linmu.serving.job import Job


Task = tuple["Future[Any]", Callable[[Runner], Any]]


class Inbox:
    """Jobs first come, first served; tasks for the model thread; whether the engine closes. Any thread may call."""

    def __init__(self, limits: Limits):
        self.limits, self.counters = limits, Counters()
        self.changed = Condition()
        self._jobs: deque[Job] = deque()
        self._tasks: deque[Task] = deque()
        self._coming = 0  # requests whose prompts are being encoded
        self._free_places = limits.max_sessions
        self._mean_s = 1.0  # how long a request keeps its place
        self.closing = self.cancelling = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue while a request is made ready; raises QueueFull or EngineClosed."""
        with self.changed:
            if self.closing:
                raise EngineClosed
            waiting = len(self._jobs) + self._coming
            if waiting >= self.limits.max_queued + self._free_places:
                self.counters.requests["refused"] += 1
                raise QueueFull(waiting, max(1.0, self._mean_s * (waiting + 1) / self.limits.max_sessions))
            self._coming += 1
        try:
            yield
        finally:
            with self.changed:
                self._coming -= 1

    def put(self, job: Job) -> None:
        """Queue a job; raises EngineClosed."""
        with self.changed:
            if self.closing:
                raise EngineClosed
            self._jobs.append(job)
            self.counters.queued = len(self._jobs)
            self.changed.notify_all()

    def put_task(self, task: Task) -> None:
        """Queue something that the model thread runs between two steps; raises EngineClosed."""
        with self.changed:
            if self.closing:
                raise EngineClosed
            self._tasks.append(task)
            self.changed.notify_all()

    def wake(self) -> None:
        """Make the model thread look."""
        with self.changed:
            self.changed.notify_all()

    def close(self, cancel: bool = False) -> None:
        """Take nothing any more; cancel: nor go on with what was taken."""
        with self.changed:
            self.closing, self.cancelling = True, self.cancelling or cancel
            self.changed.notify_all()

    # --- the model thread

    def wait(self) -> bool:
        """Wait until there is something to do -> False when nothing comes any more."""
        with self.changed:
            while not (self._jobs or self._tasks or self.closing):
                self.changed.wait()
            return bool(self._jobs or self._tasks) or not self.closing

    def take_task(self) -> Task | None:
        """The next task, or None."""
        with self.changed:
            return self._tasks.popleft() if self._tasks else None

    def take(self, free_places: int) -> Job | None:
        """The next job if it fits; cancelled ones are dropped."""
        with self.changed:
            self._jobs = deque(job for job in self._jobs if not self._dropped(job))
            job = self._jobs.popleft() if self._jobs and self._jobs[0].places <= free_places else None
            self._free_places = free_places - (job.places if job else 0)
            self.counters.queued = len(self._jobs)
            return job

    def free_places(self, count: int) -> None:
        """So many requests more could begin now: whoever asks for a place need not wait behind answers that ended."""
        with self.changed:
            self._free_places = count

    def take_all(self) -> tuple[list[Job], list[Task]]:
        """Everything that waits."""
        with self.changed:
            jobs, tasks = list(self._jobs), list(self._tasks)
            self._jobs.clear()
            self._tasks.clear()
            self.counters.queued = 0
            return jobs, tasks

    def served(self, seconds: float) -> None:
        """A request kept its place for so long."""
        self._mean_s += 0.1 * (seconds - self._mean_s)

    def _dropped(self, job: Job) -> bool:
        if job.ticket.cancelled:
            self.counters.requests["cancelled"] += 1
        return job.ticket.cancelled
