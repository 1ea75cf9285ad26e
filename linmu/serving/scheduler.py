"""What the model thread does: admits requests, reads a piece of a prompt, steps everything that is being decoded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from linmu.processing import Processor
from linmu.runtimes.answering import Answering
from linmu.runtimes.base import Runner, RunnerState
from linmu.runtimes.batch import new_batch
from linmu.serving.failures import attempt, shown
from linmu.serving.inbox import Inbox
from linmu.serving.job import Decoding, Job
from linmu.serving.reading import PromptReader
from linmu.serving.request import EngineClosed, Usage


class Scheduler:
    """One turn is a task, a piece of one prompt, and one step of all answers: so no answer waits for more than these.

    Prompts that are being read take turns. A request's failure ends that request alone.
    """

    def __init__(self, runner: Runner, processor: Processor, reader: PromptReader, inbox: Inbox):
        self._runner, self._processor, self._reader, self._inbox = runner, processor, reader, inbox
        self._batch = new_batch(runner, inbox.limits.max_sessions)
        self._reading: deque[Job] = deque()
        self._rows: list[Decoding] = []  # in the order of the batch's rows
        self._spare: list[RunnerState] = []
        self._counters = inbox.counters

    def run(self) -> None:
        """Work until the inbox closes and nothing is left, or what is left is cancelled."""
        while not self._inbox.cancelling and (self._reading or self._rows or self._inbox.wait()):
            self._turn()

    def end_all(self) -> None:
        """End what is left, because the engine closes."""
        waiting, tasks = self._inbox.take_all()
        for future, _ in tasks:
            future.cancel()
        for job in {*waiting, *self._reading, *self._jobs()}:
            job.ticket.finish(EngineClosed())

    def _turn(self) -> None:
        if task := self._inbox.take_task():
            self._run_task(*task)
        self._drop_cancelled()
        self._admit()
        if self._reading:
            self._advance(self._reading.popleft())
        if self._rows:
            self._step()
        self._inbox.free_places(self._free_places())
        self._counters.reading, self._counters.decoding = len(self._reading), len(self._rows)

    def _run_task(self, future: Future[Any], function: Callable[[Runner], Any]) -> None:
        if future.set_running_or_notify_cancel():
            attempt(lambda: future.set_result(function(self._runner)), future.set_exception)

    # --- places

    def _jobs(self) -> set[Job]:
        return {decoding.job for decoding in self._rows}

    def _free_places(self) -> int:
        return self._inbox.limits.max_sessions - len(self._rows) - sum(job.places for job in self._reading)

    def _admit(self) -> None:
        while job := self._inbox.take(self._free_places()):
            self._counters.queue_s.observe(time.perf_counter() - job.clock.start)
            job.state = self._new_state()
            self._reading.append(job)

    def _new_state(self) -> RunnerState:
        """One that may hold anything."""
        return self._spare.pop() if self._spare else self._runner.new_state()

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._reading if job.ticket.cancelled]:
            self._reading.remove(job)
            self._end(job, "cancelled")
        for job in [job for job in self._jobs() if job.ticket.cancelled]:
            self._leave(job)
            self._end(job, "cancelled")

    def _leave(self, job: Job) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows[row].job is job:
                self._free_row(row)

    def _free_row(self, row: int, state: RunnerState | None = None) -> None:
        self._batch.leave(row, state)
        last = self._rows.pop()  # the batch moves its last row in the same way
        if row < len(self._rows):
            self._rows[row] = last

    def _end(self, job: Job, outcome: str, error: BaseException | None = None) -> None:
        job.ticket.finish(error)
        self._counters.requests[outcome] += 1
        self._inbox.served(time.perf_counter() - job.clock.start)
        self._give_back(job)

    def _give_back(self, job: Job) -> None:
        if job.state is not None:
            self._spare.append(job.state)
        job.state = job.reading = None

    def _fail(self, job: Job, error: Exception) -> None:
        self._leave(job)
        self._end(job, "failed", shown(error))

    # --- prompts

    def _advance(self, job: Job) -> None:
        attempt(lambda: self._try_piece(job), partial(self._fail, job))

    def _try_piece(self, job: Job) -> None:
        assert job.state is not None
        if job.reading is None:
            job.reading = self._reader.begin(job.inputs, job.state, job.request.keep)
        logits = job.reading.advance()
        if logits is None:
            self._reading.append(job)
        else:
            self._begin_answers(job, logits)

    def _begin_answers(self, job: Job, logits: np.ndarray) -> None:
        reading, request = job.reading, job.request
        assert reading is not None and job.state is not None
        job.usage, job.open_answers = Usage(reading.tokens, reading.cached_tokens, 0), request.n
        self._counters.prompt_tokens += reading.tokens
        self._counters.cached_tokens += reading.cached_tokens
        self._counters.first_token_s.observe(time.perf_counter() - job.clock.start)
        for index in range(request.n):
            settings = job.answer_settings(index)
            answer = Answering(self._processor, settings, job.inputs.input_ids, replace(job.clock))
            decoding = Decoding(job, index, answer, reading.next_position, reading.tokens)
            if self._tell(decoding, logits):
                self._batch.join(job.state)
                self._rows.append(decoding)
        if job.open_answers:
            self._give_back(job)

    # --- answers

    def _step(self) -> None:
        rows, start = list(self._rows), time.perf_counter()
        inputs = [(row.answer.token, row.position, row.past_length) for row in rows]
        logits = attempt(lambda: self._batch.step(*zip(*inputs, strict=True)), self._step_failed)
        if logits is None:
            return
        self._counters.step_s.observe(time.perf_counter() - start)
        self._counters.step_rows.observe(len(rows))
        for decoding, row_logits in zip(rows, logits, strict=True):
            if decoding in self._rows:  # not of a request that failed just now
                attempt(partial(self._push, decoding, row_logits), partial(self._fail, decoding.job))

    def _step_failed(self, error: Exception) -> None:
        """Find out whose fault it was: the states are as they were, and each answer takes its step alone."""
        if len(jobs := self._jobs()) == 1:
            self._fail(jobs.pop(), error)
        for decoding in list(self._rows):
            if decoding in self._rows:
                attempt(partial(self._step_alone, decoding), partial(self._fail, decoding.job))

    def _step_alone(self, decoding: Decoding) -> None:
        state = self._new_state()
        self._free_row(self._rows.index(decoding), state)
        try:
            logits = self._runner.step(decoding.answer.token, decoding.position, decoding.past_length, state)
            self._batch.join(state)
            self._rows.append(decoding)
            self._push(decoding, logits)
        finally:
            self._spare.append(state)

    def _push(self, decoding: Decoding, logits: np.ndarray) -> None:
        decoding.position, decoding.past_length = decoding.position + 1, decoding.past_length + 1
        if not self._tell(decoding, logits):
            self._free_row(self._rows.index(decoding))

    def _tell(self, decoding: Decoding, logits: np.ndarray) -> bool:
        """Push logits into an answer -> whether it goes on."""
        job = decoding.job
        goes_on = job.tell(decoding, logits)
        self._counters.completion_tokens += bool(job.settings.limit)
        if not job.open_answers:
            self._end(job, "finished")
        return goes_on
