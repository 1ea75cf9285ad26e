"""What a watched stream remembers: a scene planted among empty frames, asked about after a delay, by policy.

    python benchmarks/watch_events.py BUNDLE [--scenes 30] [--leads 0 30] [--keep decay restart:12s:6s restart:30s:10s]

A stream begins with `lead` seconds of empty frames (one a second). Then a scene of the demo's test data is shown for
six seconds: something moves, two or three things come one after another, or a shape appears up to three times. Then it
is empty again. After every delay the scene's question is asked, on a copy of the state. Held: the share of streams
where the state that answers began before the scene, so that it could know all of it. Every policy reads the same
encoded frames. Guessing is right about one time in four. Prints a table (per cent) and a JSON line. The demo student
was trained on clips of three to six frames: the figures compare policies on that student.
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
from examples.questions.clips import events, motion, order  # noqa: E402
from examples.questions.drawing import background  # noqa: E402
from linmu.processing.open_clip import OpenClip, SampledFrame  # noqa: E402
from linmu.runtimes.keeping import KeptStates, checked_keep  # noqa: E402
from linmu.runtimes.session import Session, load  # noqa: E402
from linmu.runtimes.watched_state import FrameEncoder, ReadableFrame, WatchedState  # noqa: E402

DELAYS = (0, 1, 2, 4, 8, 16, 32, 64)
FPS, SHOWN = 1.0, 6
SCENES = (motion, order, events)
Scores = dict[str, dict[str, dict[int, list[float]]]]  # policy -> "right" or "held" -> delay -> 1 or 0


class Stream:
    """Encoded frames of one stream, and the question about its scene."""

    def __init__(self, seed: int, lead: int, session: Session, clip: OpenClip):
        rng = np.random.default_rng(seed)
        scene = SCENES[seed % len(SCENES)](rng, "test", SHOWN)
        assert scene.frames is not None
        self.lead, self.question = lead, scene.questions[0]
        encoder = FrameEncoder(session.runner, clip)
        pictures = [np.asarray(background(rng)), *scene.frames]
        frames = [encoder.push(SampledFrame(clip.fit(picture), 0)) for picture in pictures]
        self._empty, *self._shown = [frame for frame in frames if frame is not None]
        assert len(self._shown) == SHOWN, "a family that reads one picture a frame"

    def frames(self) -> Iterator[ReadableFrame]:
        """All frames up to the longest delay."""
        for slot in range(self.lead + SHOWN + DELAYS[-1]):
            place = slot - self.lead
            frame = self._shown[place] if 0 <= place < SHOWN else self._empty
            yield replace(frame, part=replace(frame.part, slots=(slot,)))


def ask(session: Session, state: WatchedState, question: str) -> str:
    """The answer on a copy."""
    state.copy_to(session.state)
    return session.generate(question, max_new_tokens=4).text.strip()


def measure(session: Session, stream: Stream, policies: dict[str, KeptStates], scores: Scores) -> None:
    """Read one stream with every policy, and ask at every delay."""
    asked = stream.question
    for frame in stream.frames():
        delay = frame.part.slots[0] - (stream.lead + SHOWN - 1)
        for keep, states in policies.items():
            states.add(frame)
            while states.work():
                pass
            if delay in DELAYS:
                scores[keep]["right"][delay].append(float(ask(session, states.old, asked.prompt) == asked.answer))
                scores[keep]["held"][delay].append(float(states.old.begin <= stream.lead))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--leads", type=int, nargs="+", default=[0, 30])
    parser.add_argument("--keep", nargs="+", default=["decay", "restart:12s:6s", "restart:30s:10s"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    scores: Scores = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with load(arguments.bundle, threads=arguments.threads) as session:
        clip = OpenClip(session.processor, FPS, session.bundle.manifest.model.mmate.max_span_frames)
        for seed in range(arguments.scenes):
            for lead in arguments.leads:
                policies = {
                    f"{keep}, lead {lead} s": KeptStates(
                        lambda: WatchedState(session.runner, session.bundle, clip), checked_keep(keep), FPS
                    )
                    for keep in arguments.keep
                }
                measure(session, Stream(seed, lead, session, clip), policies, scores)
            say(f"{seed + 1} of {arguments.scenes} scenes")
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
    finish({"benchmark": "watch_events", "scenes": arguments.scenes, "recall": results})


if __name__ == "__main__":
    main()
