"""What many sessions gain from decoding together: tokens/s and time per token of 1 to 16 sessions on one model.

    python benchmarks/serve_batch.py [--quant none,int4] [--sessions 1,2,4,8,16] [--turns 4,8] [--bundle DIR]

Sessions read a prompt, then decode through the batch of the bundle's runner: one call a step for all. All sizes are
stepped in turn in one process, so that what slows the machine down slows all of them; the ratio to one session is the
median over rounds. "cpu" is the same of the process's CPU time, which waiting for other processes is no part of.
"turn" rows are the same sessions stepped one after the other. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, machine, numbers, say, table
from ours import OurSession, build_bundle
from peer import build_teacher

from linmu.runtimes.batch import RunnerBatch, TurnsBatch

OUT = Path(__file__).parents[1] / "out"
PROMPT, BURST = 200, 3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Sessions:
    """So many sessions of one batch, all of which have read the same prompt."""

    def __init__(self, batch: RunnerBatch, prompt: OurSession, count: int):
        self.batch, self.count, self.length = batch, count, prompt.length
        for _ in range(count):
            batch.join(prompt.state)

    def burst(self) -> dict[str, float]:
        """Seconds of one step, by clock; mean of BURST steps."""
        before = {name: clock() for name, clock in CLOCKS.items()}
        for _ in range(BURST):
            same = [self.length] * self.count
            self.batch.step([42] * self.count, same, same)
            self.length += 1
        return {name: (clock() - before[name]) / BURST for name, clock in CLOCKS.items()}


def measure(bundle: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a number of sessions."""
    session = OurSession(bundle, args.threads)
    session.prefill(np.random.default_rng(0).integers(3, 49000, PROMPT))
    make: dict[str, Callable[[int], RunnerBatch]] = {
        "batch": lambda count: _batch(session, count),
        "turns": lambda count: TurnsBatch(session.runner, count),
    }
    wanted = [("batch", count) for count in args.sessions] + [("turns", count) for count in args.turns]
    cases = {(way, count): Sessions(make[way](count), session, count) for way, count in wanted}
    samples: dict[tuple[str, int], list[dict[str, float]]] = {key: [] for key in cases}
    for turn in range(args.rounds + 1):
        for key, case in cases.items():
            found = case.burst()
            if turn:  # the first one binds buffers
                samples[key].append(found)
    return [_row(key, samples) for key in cases]


def _batch(session: OurSession, count: int) -> RunnerBatch:
    batch = session.runner.new_batch(count)
    if batch is None:
        raise SystemExit("this bundle's prefill graph takes one sequence: export it again")
    return batch


def _row(key: tuple[str, int], samples: dict[tuple[str, int], list[dict[str, float]]]) -> dict[str, Any]:
    way, count = key
    row: dict[str, Any] = {"way": way, "sessions": count}
    for clock in CLOCKS:
        mine, one = ([sample[clock] for sample in samples[k]] for k in (key, ("batch", 1)))
        row[f"{clock} step ms"] = statistics.median(mine) * 1e3
        row[f"{clock} token time"] = statistics.median(a / b for a, b in zip(mine, one, strict=True))
        row[f"{clock} ratio"] = statistics.median(count * b / a for a, b in zip(mine, one, strict=True))
    row["tokens/s"] = count / (row["wall step ms"] / 1e3)
    return row


def main() -> None:
    """Export what is missing, then measure every preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="none,int4")
    parser.add_argument("--sessions", type=numbers, default="1,2,4,8,16", help="1 among them")
    parser.add_argument("--turns", type=numbers, default="8", help="sessions that take turns, for comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bundle", type=Path, help="a bundle of one's own, in place of those of --quant")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    about = {"benchmark": "serve_batch", "machine": machine(), "threads": args.threads, "prompt": PROMPT, "rows": {}}
    for quant in [str(args.bundle)] if args.bundle else args.quant.split(","):
        bundle = args.bundle or build_bundle(build_teacher(args.out / "smollm2"), args.out / "smollm2-serve", quant)
        rows = measure(bundle, args)
        say(quant)
        say(table(rows))
        about["rows"][quant] = rows
    finish(about)


if __name__ == "__main__":
    main()
