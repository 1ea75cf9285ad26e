"""What a text window costs: decode speed and state bytes of SmolLM2-135M without one and with 16 to 256 tokens.

    python benchmarks/window_cost.py [--quant none,int4] [--windows 0,16,64,128,256] [--sinks 4] [--own 64]

Windows share Flex-MA's projections; --own names widths that are measured with projections of their own, too. One bundle
each, all opened in one process and stepped in turn, after a prompt that fills the widest window. The
weights are those of the converted model: speed does not depend on training. Prints a table (medians; "of today" is the
speed without a window divided into each) and a JSON line.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from harness import finish, interleave, machine, medians, numbers, say, table, timed
from ours import OurSession, build_bundle
from peer import build_teacher

OUT = Path(__file__).parents[1] / "out"
PROMPT, BURST = 600, 10


def measure(bundles: dict[str, Path], threads: int, rounds: int) -> list[dict]:
    """A row a bundle: step milliseconds, speed against no window, state and graph bytes."""
    sessions = {name: OurSession(bundle, threads) for name, bundle in bundles.items()}
    prompt = np.random.default_rng(0).integers(3, 49000, PROMPT)
    for session in sessions.values():
        session.prefill(prompt)
    cases = {name: partial(timed, session.step, BURST) for name, session in sessions.items()}
    interleave(cases, 2)
    samples = interleave(cases, rounds)
    # the ratio of each round: what slows the machine down slows both
    ratios = {name: [a / b for a, b in zip(samples["0"], times, strict=True)] for name, times in samples.items()}
    steps, ratio = medians(samples), medians(ratios)
    return [
        {
            "window": name,
            "step ms": steps[name] * 1e3,
            "of today": ratio[name],
            "state KiB": session.session.bundle.manifest.state_bytes / 1024,
            "bundle MiB": sum(file.stat().st_size for file in bundles[name].rglob("*") if file.is_file()) / 2**20,
        }
        for name, session in sessions.items()
    ]


def main() -> None:
    """Export what is missing, then measure every preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="none,int4")
    parser.add_argument("--windows", type=numbers, default="0,16,64,128,256")
    parser.add_argument("--own", type=numbers, default="64")
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    teacher, result = build_teacher(args.out / "smollm2"), {}
    for quant in args.quant.split(","):
        bundles = {}
        for width, projections in [(w, "shared") for w in args.windows] + [(w, "own") for w in args.own]:
            name = str(width) if projections == "shared" else f"{width} own"
            settings = {
                "text_window": width,
                "text_sinks": args.sinks if width else 0,
                "text_window_projections": projections,
            }
            out = args.out / f"smollm2-window{name.replace(' ', '-')}"
            bundles[name] = build_bundle(teacher, out, quant, settings=settings)
        result[quant] = measure(bundles, args.threads, args.rounds)
        say(f"{quant}\n" + table(result[quant]))
    finish({"benchmark": "window_cost", "threads": args.threads, "machine": machine(), "presets": result})


if __name__ == "__main__":
    main()
