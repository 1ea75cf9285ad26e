"""Accuracy on clips far longer than those of training: teacher and student on the same questions.

    python benchmarks/clip_length.py STUDENT TEACHER OUT [--tests 150]

Training clips have 3 to 6 frames; these have 6, 24 and 96 (the events of a clip are spread over its frames). The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout: examples/questions

from examples.questions.clips import FRAMES  # noqa: E402
from examples.questions.generate import VIDEO_TASKS, lines, samples  # noqa: E402
from examples.questions.measure import accuracy, ask_all, table_line  # noqa: E402
from linmu.formats.data_folder import write_data_folder  # noqa: E402

FACTORS = (1, 4, 16)
SEED = 201


def main() -> None:
    """Ask both models at every length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tests", type=int, default=150, help="samples of each length")
    args = parser.parse_args()
    table: dict[str, dict[str, dict[str, float]]] = {}
    for factor in FACTORS:
        frames = factor * FRAMES[1]
        data = args.out / f"frames-{frames}"
        if not data.exists():
            write_data_folder(data, lines(samples("test", SEED, args.tests, VIDEO_TASKS, frames)))
        for name, folder in (("teacher", args.teacher), ("student", args.student)):
            found = accuracy(ask_all(folder, [data], args.out / "said" / name, batch_size=max(1, 32 // factor)))
            table.setdefault(str(frames), {})[name] = found
            print(table_line(f"{name} {frames} frames", found), file=sys.stderr, flush=True)
    print(json.dumps({"samples": args.tests, "training_frames": FRAMES, "accuracy": table}))


if __name__ == "__main__":
    main()
