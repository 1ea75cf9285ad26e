"""A state that reads a clip without an end, a span of frames at a time, and can be asked on a copy at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linmu.errors import InputError
from linmu.formats.bundle import Bundle
from linmu.formats.manifest import Manifest
from linmu.layout import PromptLayout
from linmu.processing import ModelInputs
from linmu.processing.open_clip import ClipPart, OpenClip, SampledFrame
from linmu.runtimes.base import Runner, VisionFeatures
from linmu.runtimes.conversation import Conversation, OpenEnd
from linmu.runtimes.prompt import PlacedPrompt, most_piece_tokens, place_prompt, prompt_pieces
from linmu.runtimes.state import SessionState
from linmu.runtimes.vision_rows import EncodedInputs


@dataclass(frozen=True)
class ReadableFrame:
    """One grid frame of a clip, encoded."""

    part: ClipPart
    features: VisionFeatures


class FrameEncoder:
    """Sampled frames go in, encoded grid frames come out (Qwen: one for every temporal patch of pictures)."""

    def __init__(self, runner: Runner, clip: OpenClip):
        self.runner, self.clip = runner, clip
        self._unpaired: list[SampledFrame] = []

    def push(self, frame: SampledFrame) -> ReadableFrame | None:
        """One call of the vision graph at most; None while a temporal patch lacks pictures."""
        self._unpaired.append(frame)
        if len(self._unpaired) < self.clip.step:
            return None
        frames, self._unpaired = self._unpaired, []
        return self._encoded(frames)

    def rest(self) -> list[ReadableFrame]:
        """The pictures of an unfinished temporal patch, the last one repeated; they stay what they are."""
        return [self._encoded(self._unpaired)] if self._unpaired else []

    def _encoded(self, frames: Sequence[SampledFrame]) -> ReadableFrame:
        part, call = self.clip.part(frames)
        return ReadableFrame(part, self.runner.encode(call))


class WatchedState:
    """One state of constant size, and the frames of the span that it has not read yet.

    Frames are read when a span of them is there, so that the state is the one of a whole clip, whose spans are cut at
    the same frames. `copy_to` reads those of the unfinished span into the copy.
    """

    def __init__(self, runner: Runner, bundle: Bundle, clip: OpenClip):
        self.runner, self.bundle, self.clip = runner, bundle, clip
        self.state = SessionState(runner, bundle)
        self.span_frames = bundle.manifest.model.mmate.max_span_frames
        self.start(0)

    def start(self, slot: int) -> None:
        """Forget everything: the clip begins at this slot."""
        self.state.reset()
        self.begin, self.read = slot, 0
        self.waiting: list[ReadableFrame] = []

    @property
    def frames(self) -> int:
        """Grid frames that a question sees."""
        return self.read + len(self.waiting)

    @property
    def due(self) -> bool:
        """Whether a whole span waits."""
        return len(self.waiting) >= self.span_frames

    def append(self) -> None:
        """Read the span that waits; an error leaves state and frames as they were."""
        span = self.waiting[: self.span_frames]
        self._read(self.state, span)
        self.read += len(span)
        self.waiting = self.waiting[self.span_frames :]

    def copy_to(self, state: SessionState, rest: Sequence[ReadableFrame] = ()) -> None:
        """Make `state` what this one would be with every frame that waits read, `rest` behind them.

        Raises InputError before the first frame.
        """
        frames = [*self.waiting, *rest]
        if not self.read and not frames:
            raise InputError("a question before the first frame", fix="wait until a frame was read")
        state.restore(self.state.copy())
        if frames:
            self._read(state, frames)

    def _read(self, state: SessionState, frames: Sequence[ReadableFrame]) -> None:
        manifest, clip = self.bundle.manifest, self.clip
        parts = [frame.part for frame in frames]
        inputs = clip.inputs(parts, self.read, self.begin)
        open_end = None if state.conversation is None else state.conversation.open_end
        placed, reached = place_frames(inputs, parts, self.begin, state.position, manifest)
        reached = max(reached, open_end.reached if open_end else 0)
        features = tuple(frame.features for frame in frames)
        encoded = EncodedInputs(inputs.input_ids, inputs.text, inputs.media, features=features)
        most = most_piece_tokens(manifest, self.runner)
        with state.all_or_nothing():
            for piece in prompt_pieces(encoded, self.runner, manifest, placed, state.tokens, most):
                self.runner.prefill(piece, state.handle)
            tail = tuple(int(token) for token in inputs.input_ids[-1:])
            talk = Conversation(clip.messages, clip.text, tail, (None,), OpenEnd(clip.tail, reached))
            state.read_prompt(len(inputs.input_ids), placed.next_position, talk)


def place_frames(
    inputs: ModelInputs, parts: Sequence[ClipPart], begin: int, position: int, manifest: Manifest
) -> tuple[PlacedPrompt, int]:
    """Where the frames of an open clip lie, and the rotary position that its later tokens have at least.

    position: where the state is. Qwen2.5-VL counts all frames of a clip from where the clip begins, by their time, and
    goes on behind the width of one frame; the others simply go on.
    """
    rules = manifest.model.prompt_rules
    if rules.facts.rope != "mrope":
        return place_prompt(inputs, manifest, position), 0
    side = max(parts[0].size)
    count = len(parts) * parts[0].size[0] * parts[0].size[1]
    if count == len(inputs.input_ids):  # not the first ones
        position -= side
    layout = place_prompt(inputs, manifest, position).layout
    ids = layout.position_ids.copy()
    origin = int(ids[1, -count])
    slots = np.array([part.slots[0] - begin for part in parts], np.float32) / np.float32(rules.temporal_patch_size)
    interval = np.float32(rules.tokens_per_second * inputs.media[0].seconds_per_grid)
    ids[0, -count:] = origin + np.repeat((slots * interval).astype(np.int64), count // len(parts))
    following = origin + side
    layout = PromptLayout(layout.length, layout.spans, ids, following)
    return PlacedPrompt(layout, following), int(ids.max()) + 1
