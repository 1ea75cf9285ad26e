"""What a watched stream remembers: a shape shown once among empty frames, asked for after a delay, by policy.

    python benchmarks/watch_events.py BUNDLE [--streams 24] [--shown 1] [--keep decay restart:16s:4s restart:1m:10s]

A stream begins with 0 to 59 empty frames (one a second), then a coloured shape is on `--shown` frames, then it is empty
again. The same stream is asked at every delay, on copies of its state: the colour of the shape (7 colours: guessing is
right 14 times of 100) and the shape of that colour (6: 17). Held: the share of streams where the state that answers
still began before the shape, so that it could know. Prints a table (per cent) and a JSON line. A student that was
trained on short clips says what its training lets it say: the figures compare policies on that student.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.harness import finish, say, table  # noqa: E402
from examples.questions.content import COLORS, SHAPES  # noqa: E402
from examples.questions.drawing import SIDE, Item, background, draw_item  # noqa: E402
from linmu.processing.open_clip import SampledFrame  # noqa: E402
from linmu.runtimes.keeping import Restart, checked_keep  # noqa: E402
from linmu.runtimes.session import Session, load  # noqa: E402
from linmu.runtimes.watched_stream import WatchedStream, WatchOptions  # noqa: E402

DELAYS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
LONGEST_LEAD = 60


class Stream:
    """Frames of one stream, and what was shown."""

    def __init__(self, seed: int, shown: int):
        rng = np.random.default_rng(seed)
        self.lead, self.shown = int(rng.integers(0, LONGEST_LEAD)), shown
        x, y = rng.uniform(40, SIDE - 40, 2)
        self.item = Item(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES)), x, y, rng.uniform(20, 30))
        ground = background(rng)
        with_item = ground.copy()
        draw_item(with_item, self.item, rng)
        self._empty, self._full = np.asarray(ground), np.asarray(with_item)

    def frames(self) -> Iterator[tuple[int, np.ndarray]]:
        """(slot, pixels) up to the longest delay."""
        for slot in range(self.lead + self.shown + DELAYS[-1]):
            yield slot, self._full if self.lead <= slot < self.lead + self.shown else self._empty

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """Kind -> (question, answer)."""
        return {
            "color": (f"What color is the {self.item.shape}?", self.item.color),
            "shape": (f"What shape is {self.item.color}?", self.item.shape),
        }


def ask(session: Session, stream: WatchedStream, question: str) -> str:
    """The answer on a copy."""
    stream.copy_to(session.state)
    return session.generate(question, max_new_tokens=4).text.strip()


def begun(keep: str, slot: int) -> int:
    """The slot at which the state that answers at `slot` began."""
    policy = checked_keep(keep)
    if not isinstance(policy, Restart):
        return 0
    every, step, begin = round(policy.every_s), round(policy.every_s - policy.overlap_s), 0
    while slot - begin >= every:
        begin += step
    return begin


def measure(session: Session, keep: str, streams: int, shown: int) -> dict[str, dict[int, list[float]]]:
    """Kind ("color", "shape", "held") -> delay -> 1 or 0 for every stream."""
    scores: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(streams):
        shown_stream = Stream(seed, shown)
        stream = WatchedStream(session.bundle, session.runner, session.processor, checked_keep(keep), WatchOptions())
        for slot, pixels in shown_stream.frames():
            stream.push(SampledFrame(stream.fit(pixels), slot))
            while stream.work():
                pass
            delay = slot - (shown_stream.lead + shown - 1)
            if delay not in DELAYS:
                continue
            scores["held"][delay].append(float(begun(keep, slot) <= shown_stream.lead))
            for kind, (question, answer) in shown_stream.questions.items():
                scores[kind][delay].append(float(ask(session, stream, question) == answer))
    return scores


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, default=24)
    parser.add_argument("--shown", type=int, default=1)
    parser.add_argument("--keep", nargs="+", default=["decay", "restart:8s:4s", "restart:16s:4s", "restart:1m:10s"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rows, results = [], {}
    with load(arguments.bundle, threads=arguments.threads) as session:
        for keep in arguments.keep:
            scores = measure(session, keep, arguments.streams, arguments.shown)
            results[keep] = {
                kind: {delay: float(np.mean(values)) for delay, values in by_delay.items()}
                for kind, by_delay in scores.items()
            }
            for kind in ("color", "shape", "held"):
                shares = {f"{delay} s": round(100 * share) for delay, share in results[keep][kind].items()}
                rows.append({"keep": keep, "%": kind, **shares})
            say(table(rows[-3:]))
    say(table(rows))
    finish({"benchmark": "watch_events", "streams": arguments.streams, "shown": arguments.shown, "recall": results})


if __name__ == "__main__":
    main()
