"""What a longer context costs: time and memory of prefill, and of a decode step, for the student and its teacher.

Every figure comes from a child process of its own, so that peak memory (VmHWM) belongs to that length alone; student
and teacher take turns at each length. A linear model doubles its prefill time when the prompt doubles (ratio 2) and
keeps its step; attention tends to ratio 4 and a step that grows. The teacher is GenAI's fp32 export of the same
weights on plain ONNX Runtime with its KV cache; its position tables are made longer than the 8k it was trained on,
which changes no timing. A length whose memory forecast (attention: fourfold growth a doubling) does not fit is
skipped, with the reason in place of a figure.

    python benchmarks/linear_cost.py [--bundle DIR] [--lengths 1024,...,32768] [--peer-only]
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from harness import available_bytes, finish, machine, numbers, peak_rss_bytes, run_child, say, table, timed
from ours import OurSession, build_bundle
from peer import MAX_POSITIONS, PeerGraph, build_peer, build_teacher

OUT = Path(__file__).parents[1] / "out"
GIB = 2**30
# A short prompt is read several times and the median taken; a long one once.
ENOUGH_SECONDS, MOST_REPEATS = 6.0, 5


def child(side: str, task: str, folder: Path, length: int, threads: int) -> dict[str, Any]:
    """One measurement in this process: {seconds | step_ms, loaded_bytes, peak_bytes}."""
    prompt = np.random.default_rng(length).integers(3, 49000, length)
    subject = OurSession(folder, threads) if side == "our" else PeerGraph(folder, threads, length + 1)
    loaded = peak_rss_bytes()
    if task == "prefill":
        times = repeated(lambda: timed(lambda: subject.prefill(prompt)))
        result: dict[str, Any] = {"seconds": statistics.median(times), "repeats": len(times)}
    else:
        result = {"step_ms": steps(subject, prompt)}
    return {**result, "loaded_bytes": loaded, "peak_bytes": peak_rss_bytes()}


def repeated(measure: Any) -> list[float]:
    """Seconds of several measurements, fewer of long ones; the first of several is a warm-up and dropped."""
    times = [measure()]
    while sum(times) < ENOUGH_SECONDS and len(times) < MOST_REPEATS:
        times.append(measure())
    return times[1:] or times


def steps(subject: OurSession | PeerGraph, prompt: np.ndarray, bursts: int = 12, burst: int = 5) -> float:
    """Median milliseconds of a step after `prompt`; the peer's cache is noise of that length, ours is read for real."""
    if isinstance(subject, PeerGraph):
        times = [timed(lambda: subject.step(len(prompt)), burst) for _ in range(bursts)]
    else:
        subject.prefill(prompt)
        times = [timed(subject.step, burst) for _ in range(bursts)]
    return statistics.median(times[2:]) * 1e3


def forecast(rows: list[dict[str, Any]], side: str) -> float:
    """Peak bytes to expect at the next doubling: growth four times the last doubling's growth (quadratic)."""
    peaks = [row[side]["peak_bytes"] for row in rows if "peak_bytes" in row[side]]
    if len(peaks) < 2:
        return 0.0
    return peaks[-1] + 4 * (peaks[-1] - peaks[-2])


def reason_to_skip(rows: list[dict[str, Any]], side: str, length: int) -> str | None:
    """Why this length is not run on this side, or None."""
    if rows and "failed" in rows[-1][side]:
        return "the shorter length failed"
    if side == "peer" and length + 1 > MAX_POSITIONS:
        return f"its position tables end at {MAX_POSITIONS}"
    need, have = forecast(rows, side), available_bytes()
    # Ours is held to the same forecast: it must not pass by being linear on paper.
    return f"forecast {need / GIB:.1f} GiB of memory, {have / GIB:.1f} available" if need > 0.9 * have else None


def prefill_rows(sides: dict[str, Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a length: {"length", side: child's result or {"failed": reason}}."""
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        row: dict[str, Any] = {"length": length}
        for side, folder in sides.items():
            reason = reason_to_skip(rows, side, length)
            row[side] = {"failed": reason} if reason else in_child(side, "prefill", folder, length, args)
        rows.append(row)
        say(table([flat(row, sides)]))
    return rows


def step_rows(sides: dict[str, Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Step milliseconds after the shortest and the longest context of interest, sides in turn, median of rounds."""
    rows = []
    for length in args.step_contexts:
        results: dict[str, list[dict]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, folder in sides.items():
                results[side].append(in_child(side, "step", folder, length, args))
        rows.append({"context": length, **{side: middle(found, "step_ms") for side, found in results.items()}})
        say(str(rows[-1]))
    return rows


def middle(results: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The result with the median value of `key`; a failure when any run failed."""
    failed = [result for result in results if "failed" in result]
    return failed[0] if failed else sorted(results, key=lambda result: result[key])[len(results) // 2]


def in_child(side: str, task: str, folder: Path, length: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run `child` in a new process."""
    words = (side, task, str(folder), str(length), str(args.threads))
    return run_child(__file__, "--child", *words, timeout_s=args.timeout)


def flat(row: dict[str, Any], sides: dict[str, Path]) -> dict[str, Any]:
    """A prefill row for the reader's table."""
    line: dict[str, Any] = {"length": row["length"]}
    for side in sides:
        got = row[side]
        line[f"{side} s"] = got.get("seconds", got.get("failed"))
        line[f"{side} peak GiB"] = got["peak_bytes"] / GIB if "peak_bytes" in got else None
    return line


def growth(rows: list[dict[str, Any]], side: str) -> dict[str, float]:
    """time(2N) / time(N) by 2N, where both were measured."""
    seconds = {row["length"]: row[side]["seconds"] for row in rows if "seconds" in row[side]}
    return {str(2 * n): seconds[2 * n] / seconds[n] for n in seconds if 2 * n in seconds}


def speed_ups(rows: list[dict[str, Any]], key: str, by: str) -> dict[str, float]:
    """How many times faster ours is, by length or context, where both were measured."""
    pairs = [(row[by], row["our"], row["peer"]) for row in rows if "our" in row]
    return {str(n): peer[key] / our[key] for n, our, peer in pairs if key in our and key in peer}


def main() -> None:
    """Measure both sides at every length and print the JSON line (or one child's)."""
    args = arguments()
    if args.child:
        side, task, folder, length, threads = args.child
        finish(child(side, task, Path(folder), int(length), int(threads)))
        return
    teacher = build_teacher(args.out / "smollm2")
    sides = {"our": args.bundle or build_bundle(teacher, args.out / "smollm2-bundle")} if not args.peer_only else {}
    sides["peer"] = build_peer(teacher, args.peer or args.out / "peer-fp32")
    rows = prefill_rows(sides, args)
    step = step_rows(sides, args)
    finish(
        {
            "benchmark": "linear_cost",
            "threads": args.threads,
            "machine": machine(),
            "prefill": rows,
            "prefill_growth": {side: growth(rows, side) for side in sides},
            "prefill_speed_up": speed_ups(rows, "seconds", "length"),
            "step": step,
            "step_speed_up": speed_ups(step, "step_ms", "context"),
        }
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="our exported fp32 bundle (made in --out when absent)")
    parser.add_argument("--peer", type=Path, help="the peer's export (made in --out when absent)")
    parser.add_argument("--peer-only", action="store_true", help="measure the teacher alone")
    parser.add_argument("--lengths", type=numbers, default="1024,2048,4096,8192,16384,32768", help="doubling lengths")
    parser.add_argument("--step-contexts", type=numbers, default="512,32768")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="children a side and context for the step figures")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds a child may take")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", nargs=5, metavar=("SIDE", "TASK", "FOLDER", "LENGTH", "THREADS"), help="internal")
    return parser.parse_args()


if __name__ == "__main__":
    main()
