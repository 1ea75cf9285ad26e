"""Session: prompt -> prefill -> streamed steps on any backend; owns the recurrent state."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.formats.bundle import Bundle, open_bundle
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.backends import open_runner
from linmu.runtimes.base import Runner
from linmu.runtimes.conversation import Turn, TurnMaker
from linmu.runtimes.guard import Guard
from linmu.runtimes.prompt import place_prompt, prompt_pieces
from linmu.runtimes.sampling import Sampling
from linmu.runtimes.state import SessionState
from linmu.runtimes.stops import StopFilter, checked_stops


@dataclass(frozen=True)
class Generation:
    """An answer: its text, its token ids (end token included), timings by name in ms and tokens/s, and why it ended.

    `notice` says what a user should know (a prompt longer than the teacher's positions), or is None.
    """

    text: str
    token_ids: tuple[int, ...]
    timings: dict[str, float]
    finish_reason: str
    prompt_tokens: int
    notice: str | None = None


@dataclass
class _Run:
    """What one answer leaves behind."""

    token_ids: list[int] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    finish_reason: str = "length"
    prompt_tokens: int = 0
    notice: str | None = None
    start: float = 0.0


class Session:
    """A model and one conversation's state. Consecutive prompts go on from the state; `reset()` starts anew.

    `state` can be saved, loaded, copied and put back; its tensors' size does not depend on what it has seen. One
    thread at a time: others are refused.
    """

    def __init__(self, bundle: Bundle, runner: Runner):
        self.bundle, self.runner = bundle, runner
        self.processor = Processor.from_folder(bundle.folder, bundle.manifest.model.vocab_size)
        self._guard = Guard()
        self.state = SessionState(runner, bundle, self._guard)
        self._run = _Run()

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free graphs and weights; whatever is asked afterwards is refused."""
        if not self._guard.closed:
            with self._guard.call():
                self._guard.closed = True
                self.runner.close()

    def reset(self) -> None:
        """Forget everything: the next prompt starts a new conversation."""
        self.state.reset()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation the state has read, its last answer included; pictures are bare parts. [] when unknown."""
        maker = TurnMaker(self.processor, self.state.past)
        return maker.messages()

    def prepare(
        self, prompt: str | list[dict[str, Any]], images: Sequence[Any] = (), video: Any = None, **options: Any
    ) -> Turn:
        """Token ids and pixels of what the prompt adds to the conversation; options as in Processor.encode.

        A text is a further user message, and so is a list of user messages; a list with answers or a system message
        is a whole conversation, of which only what the state has not read is fed. With `raw` the text follows the
        very tokens that were generated.
        """
        with self._guard.call():
            add = options.pop("add_generation_prompt", True)
            read = self.processor.read(prompt, images, video, **options)
            return TurnMaker(self.processor, self.state.past, add).turn(read)

    def prefill(self, inputs: ModelInputs, max_piece_tokens: int | None = None) -> np.ndarray:
        """Read a prompt into the state -> logits [V] of its last token; an error leaves the state as it was.

        Raises InputError for inputs that `prepare` made at another moment of the conversation.
        """
        with self._guard.call():
            return self._prefill(inputs, max_piece_tokens)

    def step(self, token: int) -> np.ndarray:
        """Feed one token -> logits [V] of the next (overwritten by the next step)."""
        with self._guard.call():
            if self.state.pending not in ((), (token,)):
                self._step(self.state.pending[-1])
            return self._step(token)

    def stream(
        self,
        prompt: str | list[dict[str, Any]],
        images: Sequence[Any] = (),
        video: Any = None,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the answer's text as it is generated (greedy unless `sampling` is given).

        max_new_tokens: 0 reads the prompt and generates nothing (None: the bundle's); stop: texts that end an answer
        and are left out of it; options as in `prepare`.
        """
        run = self._run = _Run()
        sampling, stops = sampling or Sampling(), StopFilter(checked_stops(stop))
        limit = self._limit(max_new_tokens)
        stream = self._guard.begin()
        try:
            with self._guard.call(stream):
                logits = self._read(prompt, images, video, options, run)
            yield from self._answer(logits, limit, sampling, stops, run, stream)
        finally:
            self._guard.end(stream)

    def generate(
        self, prompt: str | list[dict[str, Any]], images: Sequence[Any] = (), video: Any = None, **options: Any
    ) -> Generation:
        """The whole answer as a Generation; arguments as in `stream`."""
        text = "".join(self.stream(prompt, images, video, **options))
        return self.result(text)

    def result(self, text: str) -> Generation:
        """The Generation of the last answer, given its text."""
        run = self._run
        return Generation(
            text, tuple(run.token_ids), dict(run.timings), run.finish_reason, run.prompt_tokens, run.notice
        )

    @property
    def notice(self) -> str | None:
        """What the user should know about the last answer, or None."""
        return self._run.notice

    def _read(self, prompt: Any, images: Any, video: Any, options: dict[str, Any], run: _Run) -> np.ndarray:
        """Prepare and read the prompt of an answer."""
        run.start = time.perf_counter()
        turn = self.prepare(prompt, images, video, **options)
        run.prompt_tokens = len(turn.input_ids)
        notices = (turn.notice, self._length_notice(run.prompt_tokens + (0 if turn.restart else self.state.tokens)))
        run.notice = "; ".join(notice for notice in notices if notice) or None
        run.timings["preprocess_ms"] = _ms(run.start)
        return self._prefill(turn)

    def _answer(
        self, logits: np.ndarray, limit: int, sampling: Sampling, stops: StopFilter, run: _Run, stream: object
    ) -> Iterator[str]:
        """Choose, feed and tell token after token. Between two pieces the session may be saved, or left."""
        decoder, generator = self.processor.stream_decoder(), sampling.generator()
        run.timings["ttft_ms"] = _ms(run.start)
        decode_start = time.perf_counter()
        for count in range(limit):
            with self._guard.call(stream):
                if count:
                    logits = self._step(run.token_ids[-1])
                token = sampling.choose(logits, generator)
                self.state.pending = (token,)
            if not count:
                run.timings["ttft_ms"] = _ms(run.start)
                decode_start = time.perf_counter()
            run.token_ids.append(token)
            if token in self.processor.eos_token_ids:
                run.finish_reason = "stop"
                break
            if text := stops.push(decoder.push(token)):
                yield text
            if stops.found:
                break
        run.timings["decode_ms"] = _ms(decode_start)
        steps = max(len(run.token_ids) - 1, 0)
        run.timings["tokens_per_s"] = steps / max(run.timings["decode_ms"] / 1e3, 1e-9)
        if not stops.found and (text := stops.push(decoder.flush()) + stops.flush()):
            yield text
        if stops.found:
            run.finish_reason = "stop"
            with self._guard.call(stream):
                self.state.said = stops.given

    def _prefill(self, inputs: ModelInputs, max_piece_tokens: int | None = None) -> np.ndarray:
        state, manifest = self.state, self.bundle.manifest
        turn = (
            inputs
            if isinstance(inputs, Turn)
            else Turn(
                inputs.input_ids,
                inputs.text,
                inputs.media,
                inputs.vision_calls,
                None,
                (state.tokens, state.pending),
                keeps_pending=True,
            )
        )
        if turn.after != (state.tokens, state.pending):
            raise InputError(
                "a prompt prepared at another moment of the conversation",
                got=f"made behind {turn.after[0]} tokens, the state has read {state.tokens}",
                fix="prepare it again",
            )
        logits = None
        with state.all_or_nothing():
            ids = turn.input_ids
            if turn.restart:
                state.reset()
            elif turn.keeps_pending and state.pending:  # the last generated token was never fed
                ids = np.concatenate([np.asarray(state.pending, np.int64), ids])
            whole = ModelInputs(ids, turn.text, turn.media, turn.vision_calls)
            placed = place_prompt(whole, manifest, state.position)
            for piece in prompt_pieces(whole, self.runner, manifest, placed, state.tokens, max_piece_tokens):
                logits = self.runner.prefill(piece, state.handle)
            state.read_prompt(len(ids), placed.next_position, turn.conversation)
        assert logits is not None  # place_prompt refuses empty prompts
        return logits

    def _step(self, token: int) -> np.ndarray:
        if not 0 <= token < self.bundle.manifest.model.vocab_size:
            raise InputError("a token id", got=token, expected=f"0..{self.bundle.manifest.model.vocab_size - 1}")
        logits = self.runner.step(token, self.state.position, self.state.tokens, self.state.handle)
        self.state.read_token(token)
        return logits

    def _limit(self, max_new_tokens: int | None) -> int:
        if max_new_tokens is None:
            return int(self.bundle.manifest.generation.get("max_new_tokens", 128))
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 0:
            raise InputError("max_new_tokens", got=repr(max_new_tokens), expected="0 or more")
        return int(max_new_tokens)

    def _length_notice(self, total: int) -> str | None:
        limit = self.bundle.manifest.generation.get("max_position_embeddings")
        if limit is None or total <= int(limit):
            return None
        return (
            f"the context has {total} tokens and the model was made for {limit} positions: it goes on, in constant "
            "memory, but what it says about so long a context was never trained"
        )


def _ms(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


def load(
    bundle: str | os.PathLike[str], backend: str = "auto", threads: int | None = None, verify_hashes: bool = True
) -> Session:
    """Open a bundle folder as a Session; raises BundleError, InputError or MissingComponentError in one line each."""
    if not isinstance(bundle, str | os.PathLike):
        raise InputError("a bundle", got=type(bundle).__name__, expected="the path of a folder")
    opened = open_bundle(Path(bundle), verify_hashes=verify_hashes)
    return Session(opened, open_runner(opened, backend, threads))
