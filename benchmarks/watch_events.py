"""What a watched stream remembers: a shape shown once among empty frames, asked for after a delay, by policy.

    python benchmarks/watch_events.py BUNDLE [--streams 24] [--shown 1] [--keep decay restart:8s:4s restart:1m:10s]

A stream begins with 0 to 29 empty frames (one a second), then a coloured shape is on `--shown` frames, then it is empty
again. It is asked at every delay, on copies of its states: the colour of the shape (7 colours: guessing is right 14
times of 100) and the shape of that colour (6: 17). Held: the share of streams where the state that answers began before
the shape, so that it could know. Every policy reads the same encoded frames. Prints a table (per cent) and a JSON line.
A student that was trained on short clips says what its training lets it say: the figures compare policies on that
student.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.harness import finish, say, table  # noqa: E402
from examples.questions.content import COLORS, SHAPES  # noqa: E402
from examples.questions.drawing import SIDE, Item, background, draw_item  # noqa: E402
from linmu.processing.open_clip import OpenClip, SampledFrame  # noqa: E402
from linmu.runtimes.keeping import KeptStates, checked_keep  # noqa: E402
from linmu.runtimes.session import Session, load  # noqa: E402
from linmu.runtimes.watched_state import FrameEncoder, ReadableFrame, WatchedState  # noqa: E402

DELAYS = (0, 1, 2, 4, 8, 16, 32, 64)
LONGEST_LEAD, FPS = 30, 1.0
Scores = dict[str, dict[str, dict[int, list[float]]]]  # policy -> "color", "shape" or "held" -> delay -> 1 or 0


class Stream:
    """Encoded frames of one stream, and what was shown."""

    def __init__(self, seed: int, shown: int, session: Session, clip: OpenClip):
        rng = np.random.default_rng(seed)
        self.lead, self.shown = int(rng.integers(0, LONGEST_LEAD)), shown
        x, y = rng.uniform(40, SIDE - 40, 2)
        self.item = Item(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES)), x, y, rng.uniform(20, 30))
        ground = background(rng)
        with_item = ground.copy()
        draw_item(with_item, self.item, rng)
        self._frames = []
        for picture in (ground, with_item):
            frame = FrameEncoder(session.runner, clip).push(SampledFrame(clip.fit(np.asarray(picture)), 0))
            assert frame is not None, "a family that reads one picture a frame"
            self._frames.append(frame)

    def frames(self) -> Iterator[ReadableFrame]:
        """All frames up to the longest delay."""
        for slot in range(self.lead + self.shown + DELAYS[-1]):
            frame = self._frames[self.lead <= slot < self.lead + self.shown]
            yield replace(frame, part=replace(frame.part, slots=(slot,)))

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """Kind -> (question, answer)."""
        return {
            "color": (f"What color is the {self.item.shape}?", self.item.color),
            "shape": (f"What shape is {self.item.color}?", self.item.shape),
        }


def ask(session: Session, state: WatchedState, question: str) -> str:
    """The answer on a copy."""
    state.copy_to(session.state)
    return session.generate(question, max_new_tokens=4).text.strip()


def measure(session: Session, stream: Stream, policies: dict[str, KeptStates], scores: Scores) -> None:
    """Read one stream with every policy, and ask at every delay."""
    for frame in stream.frames():
        slot = frame.part.slots[0]
        delay = slot - (stream.lead + stream.shown - 1)
        for keep, states in policies.items():
            states.add(frame)
            while states.work():
                pass
            if delay not in DELAYS:
                continue
            scores[keep]["held"][delay].append(float(states.old.begin <= stream.lead))
            for kind, (question, answer) in stream.questions.items():
                scores[keep][kind][delay].append(float(ask(session, states.old, question) == answer))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--shown", type=int, default=1)
    parser.add_argument("--keep", nargs="+", default=["decay", "restart:8s:4s", "restart:16s:4s", "restart:1m:10s"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    scores: Scores = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with load(arguments.bundle, threads=arguments.threads) as session:
        clip = OpenClip(session.processor, FPS, session.bundle.manifest.model.mmate.max_span_frames)
        for seed in range(arguments.streams):
            policies = {
                keep: KeptStates(lambda: WatchedState(session.runner, session.bundle, clip), checked_keep(keep), FPS)
                for keep in arguments.keep
            }
            measure(session, Stream(seed, arguments.shown, session, clip), policies, scores)
            say(f"{seed + 1} of {arguments.streams} streams")
    results = {
        keep: {kind: {delay: float(np.mean(marks)) for delay, marks in by.items()} for kind, by in kinds.items()}
        for keep, kinds in scores.items()
    }
    rows = [
        {"keep": keep, "%": kind, **{f"{delay} s": round(100 * share) for delay, share in by.items()}}
        for keep, kinds in results.items()
        for kind, by in kinds.items()
    ]
    say(table(rows))
    finish({"benchmark": "watch_events", "streams": arguments.streams, "shown": arguments.shown, "recall": results})


if __name__ == "__main__":
    main()
