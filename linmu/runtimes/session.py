"""Session: prompt -> prefill -> streamed steps on any backend; owns the recurrent state."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.formats.bundle import Bundle, open_bundle
from linmu.layout import PromptLayout
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.answer import Clock, Generation, Piece
from linmu.runtimes.answering import Answering, AnswerSettings
from linmu.runtimes.backends import open_runner
from linmu.runtimes.base import Runner
from linmu.runtimes.boundaries import boundaries, cut_prompt
from linmu.runtimes.constraints import Constraint
from linmu.runtimes.conversation import Turn
from linmu.runtimes.guard import Guard
from linmu.runtimes.prompt import most_piece_tokens, pieces_at, place_prompt
from linmu.runtimes.sampling import Sampling
from linmu.runtimes.state import SessionState
from linmu.runtimes.stops import checked_stops
from linmu.runtimes.turns import TurnMaker


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

        max_piece_tokens: cut only where a piece would have more (default: the bundle's number, and where
        linmu.runtimes.boundaries says), or fewer where the runner takes no more. Raises InputError for inputs that
        `prepare` made at another moment of the conversation.
        """
        with self._guard.call():
            return self._prefill(inputs, max_piece_tokens)

    def step(self, token: int) -> np.ndarray:
        """Feed one token -> logits [V] of the next (overwritten by the next step); an error leaves the state as it was.

        A generated token that was not fed yet goes first, unless it is this one.
        """
        with self._guard.call():
            self._check_token(token)
            if self.state.past.pending in ((), (token,)):
                return self._step(token)
            with self.state.all_or_nothing():
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
        constraint: Constraint | None = None,
        **options: Any,
    ) -> Iterator[Piece]:
        """Yield the answer token by token as Pieces (greedy unless `sampling` is given).

        max_new_tokens: 0 reads the prompt and generates nothing (None: the bundle's); stop: texts that end an answer
        and are left out of it; constraint: what the answer is held to, made for it alone; options as in `prepare`. A
        stream may be left: what was generated is in the state. An error while the prompt is read leaves the state as
        it was, a later one as if the stream had been left there.
        """
        settings = AnswerSettings(self._limit(max_new_tokens), sampling or Sampling(), checked_stops(stop), constraint)
        stream = self._guard.begin()
        try:
            clock = Clock(time.perf_counter())
            with self._guard.call(stream):
                turn, notice = self._prepared(prompt, images, video, options)
                clock.preprocess_ms = (time.perf_counter() - clock.start) * 1e3
                answering = Answering(self.processor, settings, turn.input_ids, clock, notice)
                logits = self._prefill(turn)
            yield from self._answer(answering, logits, stream) if settings.limit else (answering.empty(),)
        finally:
            self._guard.end(stream)

    def generate(
        self, prompt: str | list[dict[str, Any]], images: Sequence[Any] = (), video: Any = None, **options: Any
    ) -> Generation:
        """The whole answer as a Generation; arguments as in `stream`. An error leaves the state as it was."""
        with self._guard.call(), self.state.all_or_nothing():
            pieces = list(self.stream(prompt, images, video, **options))
        last = pieces[-1]
        assert last.finish_reason is not None  # that is what makes it the last
        return Generation(
            "".join(piece.text for piece in pieces),
            tuple(piece.token_id for piece in pieces if piece.token_id is not None),
            last.timings,
            last.finish_reason,
            last.prompt_tokens,
            last.notice,
            tuple(piece.logprobs for piece in pieces if piece.logprobs is not None),
        )

    def _prepared(self, prompt: Any, images: Any, video: Any, options: dict[str, Any]) -> tuple[Turn, str | None]:
        """The turn of an answer, and what a user should know about it."""
        turn = self.prepare(prompt, images, video, **options)
        total = len(turn.input_ids) + (0 if turn.restart else self.state.tokens)
        notices = (turn.notice, self._length_notice(total))
        return turn, "; ".join(notice for notice in notices if notice) or None

    def _answer(self, answering: Answering, logits: np.ndarray, stream: object) -> Iterator[Piece]:
        """Choose and feed token after token; between two of them the session may be saved, or left."""
        piece = None
        while piece is None or piece.finish_reason is None:
            with self._guard.call(stream):
                logits = logits if piece is None else self._step(answering.token)
                piece = answering.push(logits)
                self.state.pending = (answering.token,)
                if piece.finish_reason is not None:  # before the text is shown: whoever shows it may leave then
                    self.state.answer_text = answering.cut_text
            yield piece

    def _prefill(self, inputs: ModelInputs, max_piece_tokens: int | None = None) -> np.ndarray:
        state, manifest = self.state, self.bundle.manifest
        now = (state.past.tokens, state.past.pending)
        turn = (
            inputs
            if isinstance(inputs, Turn)
            else Turn(
                inputs.input_ids,
                inputs.text,
                inputs.media,
                inputs.vision_calls,
                after=now,
                keeps_pending=True,
            )
        )
        if turn.after != now:
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
            cuts = self._cuts(whole, placed.layout, max_piece_tokens)
            for piece in pieces_at(cuts, whole, self.runner, manifest, placed, state.tokens):
                logits = self.runner.prefill(piece, state.handle)
            state.read_prompt(len(ids), placed.next_position, turn.conversation)
        assert logits is not None  # place_prompt refuses empty prompts
        return logits

    def _cuts(self, inputs: ModelInputs, layout: PromptLayout, wanted: int | None) -> list[tuple[int, int]]:
        most = most_piece_tokens(self.bundle.manifest, self.runner, wanted)
        ends = self.processor.message_end_ids
        return cut_prompt(layout, [] if wanted else boundaries(inputs, layout, ends), most)

    def _step(self, token: int) -> np.ndarray:
        with self.state.feeding(token):
            return self.runner.step(token, self.state.position, self.state.tokens, self.state.handle)

    def _check_token(self, token: int) -> None:
        if not 0 <= token < self.bundle.manifest.model.vocab_size:
            raise InputError("a token id", got=token, expected=f"0..{self.bundle.manifest.model.vocab_size - 1}")

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


def load(
    bundle: str | os.PathLike[str], backend: str = "auto", threads: int | None = None, verify_hashes: bool = True
) -> Session:
    """Open a bundle folder as a Session; raises BundleError, InputError or MissingComponentError in one line each."""
    if not isinstance(bundle, str | os.PathLike):
        raise InputError("a bundle", got=type(bundle).__name__, expected="the path of a folder")
    opened = open_bundle(Path(bundle), verify_hashes=verify_hashes)
    return Session(opened, open_runner(opened, backend, threads))
