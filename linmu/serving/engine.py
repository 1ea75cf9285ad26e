"""The engine: one thread owns the model; requests come from any thread and are answered side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import TypeVar

from linmu.errors import InputError
from linmu.formats.bundle import Bundle, open_bundle
from linmu.processing import ModelInputs, Processor
from linmu.processing.known_media import KnownMedia
from linmu.runtimes.answer import Clock
from linmu.runtimes.answering import AnswerSettings
from linmu.runtimes.backends import open_runner
from linmu.runtimes.base import Runner
from linmu.runtimes.stops import checked_stops
from linmu.serving.counters import Counters
from linmu.serving.failures import attempt
from linmu.serving.inbox import Inbox
from linmu.serving.job import Job
from linmu.serving.reading import PlainReader, PromptReader
from linmu.serving.request import Limits, PromptTooLong, Request
from linmu.serving.scheduler import Scheduler
from linmu.serving.ticket import Ticket

T = TypeVar("T")
ReaderMaker = Callable[[Runner, Bundle, int], PromptReader]


class Engine:
    """Answers many requests at once on one model; a context manager.

    make_reader: (runner, bundle, tokens of a piece) -> how prompts are read (PlainReader: from zero states); known:
    media that need not be decoded again, for readers that keep states. Opening raises what `linmu.load` raises. After
    `close` everything raises EngineClosed.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str],
        backend: str = "auto",
        threads: int | None = None,
        limits: Limits | None = None,
        make_reader: ReaderMaker = PlainReader,
        known: KnownMedia | None = None,
    ):
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
        self.limits = limits or Limits()
        processor = Processor.from_folder(self.bundle.folder, self.bundle.manifest.model.vocab_size)
        self.processor = replace(processor, known=known)
        self._inbox = Inbox(self.limits)
        opened: Future[str] = Future()
        self._thread = Thread(
            target=self._work, args=(backend, threads, make_reader, opened), name="linmu-model", daemon=True
        )
        self._thread.start()
        self.backend = opened.result()

    def __enter__(self) -> Engine:
        """The engine itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close without waiting for answers."""
        self.close(wait=False)

    def submit(self, request: Request) -> Ticket:
        """Queue a request -> its ticket; the prompt is tokenized and its media processed in the calling thread.

        Raises QueueFull (before any work), EngineClosed, PromptTooLong, InputError for anything else that is wrong.
        """
        clock = Clock(time.perf_counter())
        with self._inbox.place():
            settings = AnswerSettings(self._limit(request), request.sampling, checked_stops(request.stop))
            request.sampling.check_vocabulary(self.bundle.manifest.model.vocab_size)
            if request.n > self.limits.max_sessions:
                raise InputError("n", got=request.n, expected=f"at most {self.limits.max_sessions}")
            constraints = [request.constraint() for _ in range(request.n)] if request.constraint else []
            inputs = self._inputs(request)
            clock.preprocess_ms = (time.perf_counter() - clock.start) * 1e3
            job = Job(request, inputs, settings, clock, Ticket(self._inbox.wake), constraints)
            self._inbox.put(job)
        return job.ticket

    def call(self, function: Callable[[Runner], T]) -> Future[T]:
        """Run a function with the runner on the model thread, between two steps -> its result; keep it short."""
        future: Future[T] = Future()
        self._inbox.put_task((future, function))
        return future

    def counters(self) -> Counters:
        """What was counted up to now."""
        return self._inbox.counters.copy()

    def close(self, wait: bool = True) -> None:
        """Take nothing more; wait: finish what was taken, else end it with EngineClosed. Frees the model."""
        self._inbox.close(cancel=not wait)
        self._thread.join()

    def _inputs(self, request: Request) -> ModelInputs:
        inputs = request.prompt
        if not isinstance(inputs, ModelInputs):
            inputs = self.processor.encode(inputs, request.images, request.video, **request.options)
        most = self.limits.max_prompt_tokens
        if most is not None and len(inputs.input_ids) > most:
            raise PromptTooLong(
                "the prompt is too long", got=f"{len(inputs.input_ids)} tokens", expected=f"at most {most}"
            )
        return inputs

    def _limit(self, request: Request) -> int:
        most = self.limits.max_new_tokens
        if request.max_new_tokens is None:
            usual = int(self.bundle.manifest.generation.get("max_new_tokens", 128))
            return usual if most is None else min(usual, most)
        if most is not None and request.max_new_tokens > most:
            raise InputError("max_new_tokens", got=request.max_new_tokens, expected=f"at most {most}")
        return request.max_new_tokens

    def _work(self, backend: str, threads: int | None, make_reader: ReaderMaker, opened: Future[str]) -> None:
        """The model thread: a runner is opened, used and closed by one thread."""
        runner = attempt(lambda: open_runner(self.bundle, backend, threads), opened.set_exception)
        if runner is None:
            return
        with runner:
            scheduler = attempt(lambda: self._scheduler(runner, make_reader), opened.set_exception)
            if scheduler is None:
                return
            opened.set_result(runner.backend)
            try:
                scheduler.run()
            finally:
                self._inbox.close(cancel=True)
                scheduler.end_all()

    def _scheduler(self, runner: Runner, make_reader: ReaderMaker) -> Scheduler:
        reader = make_reader(runner, self.bundle, self.limits.piece_tokens)
        return Scheduler(runner, self.processor, reader, self._inbox)
