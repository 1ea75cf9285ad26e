"""An hour of generated video in one state: memory every minute, frames a second, late frames, time to an answer.

    python benchmarks/watch_hour.py BUNDLE [--minutes 60] [--fps 1] [--keep decay restart:10m:1m] [--threads 2]

Shapes that come and go (examples/questions), 160 x 160 pixels, four frames a second, in an MP4 file. For every policy
the file is read as fast as the model reads, with a question every minute of video; then it is played at 1.5 times that
speed, where frames must be dropped. Resident memory is the process's own, at the end of every minute of video. Prints a
table and a JSON line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.harness import finish, say, table  # noqa: E402
from examples.questions.clips import events  # noqa: E402
from linmu.runtimes.session import Session, load  # noqa: E402

VIDEO_FPS, SCENE_FRAMES = 4, 40
QUESTION = "How many times does the star appear?"


def write_video(path: Path, minutes: int) -> None:
    """Scenes of ten seconds, one after another."""
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(VIDEO_FPS), options={"preset": "ultrafast"})
        stream.width = stream.height = 160
        stream.pix_fmt = "yuv420p"
        for _ in range(minutes * 60 * VIDEO_FPS // SCENE_FRAMES):
            frames = events(rng, "test", SCENE_FRAMES).frames
            assert frames is not None
            for pixels in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(session: Session, path: Path, keep: str, fps: float, speed: float | None) -> dict[str, Any]:
    """One policy over the whole file."""
    curve, answered = [], []
    start = time.perf_counter()
    with session.watch(path, keep=keep, fps=fps, speed=speed) as watcher:
        for _ in watcher.moments(60.0):
            asked = time.perf_counter()
            watcher.ask(QUESTION, max_new_tokens=4)
            answered.append((time.perf_counter() - asked) * 1e3)
            curve.append(resident())
        counts = watcher.counts
    wall_s = time.perf_counter() - start
    asking_s = sum(answered) / 1e3
    warm = curve[min(2, len(curve) - 1)]
    return {
        "keep": keep,
        "speed": speed,
        "video_s": counts.seconds,
        "wall_s": wall_s,
        "decoded": counts.reader.decoded,
        "frames": counts.frames,
        "dropped": counts.reader.dropped,
        "frames_per_s": counts.frames / (wall_s - asking_s if speed is None else wall_s),
        "answer_ms": statistics.median(answered),
        "state_bytes": counts.state_bytes,
        "resident_minute_3": warm,
        "resident_end": curve[-1],
        "resident_most_after_minute_3": max(curve[2:] or curve),
        "curve_mib": [round(value / 2**20, 1) for value in curve],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--keep", nargs="+", default=["decay", "restart:10m:1m"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, load(arguments.bundle, threads=arguments.threads) as session:
        path = Path(folder) / "hour.mp4"
        say(f"writing {arguments.minutes} minutes of video")
        write_video(path, arguments.minutes)
        results = []
        for keep in arguments.keep:
            free = watched(session, path, keep, arguments.fps, None)
            speed = 1.5 * free["frames_per_s"] / arguments.fps
            results += [free, watched(session, path, keep, arguments.fps, speed)]
            say(f"{keep}: {free['frames_per_s']:.1f} frames/s, MiB by the minute: {free['curve_mib']}")
    rows = [
        {
            "keep": result["keep"],
            "speed": "as it can" if result["speed"] is None else f"{result['speed']:.0f}x",
            "frames": result["frames"],
            "dropped": result["dropped"],
            "frames/s": result["frames_per_s"],
            "answer ms": result["answer_ms"],
            "state KiB": result["state_bytes"] / 2**10,
            "MiB at minute 3": result["resident_minute_3"] / 2**20,
            "MiB at the end": result["resident_end"] / 2**20,
        }
        for result in results
    ]
    say(table(rows))
    finish({"benchmark": "watch_hour", "threads": arguments.threads, "fps": arguments.fps, "runs": results})


if __name__ == "__main__":
    main()
