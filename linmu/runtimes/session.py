"""Session: prompt -> prefill -> streamed steps on any backend; owns the recurrent state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linmu.bundle import Bundle, open_bundle
from linmu.errors import InputError
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.backends import open_runner
from linmu.runtimes.base import Runner
from linmu.runtimes.prompt import place_prompt, prompt_pieces
from linmu.runtimes.sampling import Sampling
from linmu.runtimes.state import SessionState


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


class Session:
    """A model and one conversation's state. Consecutive prompts go on from the state; `reset()` starts anew.

    `state` can be saved, loaded, copied and put back; its size does not depend on what it has seen.
    """

    def __init__(self, bundle: Bundle, runner: Runner):
        self.bundle, self.runner = bundle, runner
        self.processor = Processor.from_folder(bundle.folder)
        self.state = SessionState(runner, bundle)
        self._run = _Run()

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free graphs and weights."""
        self.runner.close()

    def reset(self) -> None:
        """Forget everything: the next prompt starts a new conversation."""
        self.state.reset()

    def prepare(
        self, prompt: str | list[dict[str, Any]], images: Sequence[Any] = (), video: Any = None, **options: Any
    ) -> ModelInputs:
        """Token ids and pixels of a prompt; options as in linmu.processing.Processor.encode."""
        if isinstance(prompt, str) and self.state.tokens and not options.get("raw"):
            turn = self._next_turn(prompt, images, video)
            if turn is not None:
                return self.processor.encode(turn, images, video, raw=True, **options)
        return self.processor.encode(prompt, images, video, **options)

    def prefill(self, inputs: ModelInputs, max_piece_tokens: int | None = None) -> np.ndarray:
        """Read a prompt into the state -> logits [V] of its last token."""
        inputs = self._with_pending(inputs)
        placed = place_prompt(inputs, self.bundle.manifest, self.state.position)
        logits = None
        manifest, past = self.bundle.manifest, self.state.tokens
        for piece in prompt_pieces(inputs, self.runner, manifest, placed, past, max_piece_tokens):
            logits = self.runner.prefill(piece, self.state.handle)
        self.state.advance(len(inputs.input_ids), placed.next_position)
        assert logits is not None  # place_prompt refuses empty prompts
        return logits

    def step(self, token: int) -> np.ndarray:
        """Feed one token -> logits [V] of the next (overwritten by the next step)."""
        logits = self.runner.step(token, self.state.position, self.state.tokens, self.state.handle)
        self.state.advance(1, self.state.position + 1)
        return logits

    def stream(
        self,
        prompt: str | list[dict[str, Any]],
        images: Sequence[Any] = (),
        video: Any = None,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """Yield the answer's text as it is generated (greedy unless `sampling` is given)."""
        run = self._run = _Run()
        sampling = sampling or Sampling()
        limit = max_new_tokens or int(self.bundle.manifest.generation.get("max_new_tokens", 128))
        start = time.perf_counter()
        inputs = self.prepare(prompt, images, video, **options)
        run.prompt_tokens = len(inputs.input_ids)
        run.notice = self._length_notice(run.prompt_tokens)
        run.timings["preprocess_ms"] = _ms(start)
        logits = self.prefill(inputs)
        decoder = self.processor.stream_decoder()
        generator = sampling.generator()
        decode_start = time.perf_counter()
        for count in range(limit):
            token = sampling.choose(logits, generator)
            if count == 0:
                run.timings["ttft_ms"] = _ms(start)
                decode_start = time.perf_counter()
            run.token_ids.append(token)
            self.state.pending = (token,)
            if token in self.processor.eos_token_ids:
                run.finish_reason = "stop"
                break
            if text := decoder.push(token):
                yield text
            if count + 1 < limit:
                self.state.pending = ()
                logits = self.step(token)
        run.timings["decode_ms"] = _ms(decode_start)
        steps = len(run.token_ids) - 1
        run.timings["tokens_per_s"] = steps / max(run.timings["decode_ms"] / 1e3, 1e-9) if steps else 0.0
        if text := decoder.flush():
            yield text

    def generate(
        self, prompt: str | list[dict[str, Any]], images: Sequence[Any] = (), video: Any = None, **options: Any
    ):
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

    def _with_pending(self, inputs: ModelInputs) -> ModelInputs:
        """The last generated token was never fed: it comes before the new prompt."""
        if not self.state.pending:
            return inputs
        ids = np.concatenate([np.asarray(self.state.pending, np.int64), inputs.input_ids])
        self.state.pending = ()
        return ModelInputs(ids, inputs.text, inputs.media, inputs.vision_calls)

    def _next_turn(self, prompt: str, images: Sequence[Any], video: Any) -> str | None:
        """The chat text of a further user turn, without what the template puts in front of a conversation."""
        if self.processor.chat_template is None:
            return None
        images = [images] if isinstance(images, (str, Path)) or not isinstance(images, Sequence) else images
        media = [{"type": "image"} for _ in images] + ([{"type": "video"}] if video is not None else [])
        turn = {"role": "user", "content": [*media, {"type": "text", "text": prompt}]}
        before: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ]
        try:
            head = self.processor.render(before, add_generation_prompt=False)
            full = self.processor.render([*before, turn], add_generation_prompt=True)
        except InputError:
            return None  # a template that takes no assistant turns
        if not full.startswith(head):
            return None
        end = head[head.rindex("b") + 1 :]  # what closes the assistant's turn; its first token was generated already
        closing = self._closing(end)
        return closing + full[len(head) :]

    def _closing(self, end: str) -> str:
        """The part of an assistant turn's end that generation did not produce (its end token is pending or fed)."""
        ids = self.processor.tokenizer.encode(end, add_special_tokens=False).ids
        eos = set(self.processor.eos_token_ids)
        if not ids or ids[0] not in eos or not self.state.ended_with(eos):
            return end
        return self.processor.tokenizer.decode(ids[1:], skip_special_tokens=False)

    def _length_notice(self, tokens: int) -> str | None:
        limit = self.bundle.manifest.generation.get("max_position_embeddings")
        total = self.state.tokens + tokens
        if limit is None or total <= int(limit):
            return None
        return (f"the context has {total} tokens and the model was made for {limit} positions: it goes on, in constant "
                "memory, but what it says about so long a context was never trained")  # fmt: skip


def _ms(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


def load(bundle: str | Path, backend: str = "auto", threads: int | None = None, verify_hashes: bool = True) -> Session:
    """Open a bundle folder as a Session; raises BundleError, InputError or MissingComponentError in one line each."""
    opened = open_bundle(Path(bundle), verify_hashes=verify_hashes)
    return Session(opened, open_runner(opened, backend, threads))
