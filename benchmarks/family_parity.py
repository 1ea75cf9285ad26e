"""Parity of every model family over a long roll-out: the student in transformers against its bundle.

For each family a tiny student (random weights, noise on every new parameter) is converted and exported; then
`linmu verify --student` reads a prompt (with an image where the family has a tower) and takes the same tokens in both
for --steps steps, comparing every logit and every state element at every step. Printed are the worst cases, in the
units of the tolerances: |difference| of logits / their standard deviation (tolerance 1e-4), |difference| of a state /
the largest value of its head (1e-3). `cached` says whether greedy generation with the constant-size cache gives the
same tokens as without it. Run: python benchmarks/family_parity.py --steps 1000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.harness import finish, table  # noqa: E402
from linmu.export.onnx_bundle import write_bundle  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402
from linmu.tools.verify import verify  # noqa: E402
from tests.folders import student_folder  # noqa: E402
from tests.model.test_generate import run  # noqa: E402
from tests.tiny import FAMILY_NAMES, VISION_NAMES, tiny_inputs, tiny_tokenizer  # noqa: E402


def measure(family: str, steps: int, plain: bool) -> dict:
    """Convert, export and verify one family; every figure that the table shows."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = student_folder(family, Path(scratch))
        bundle = Path(scratch) / "bundle"
        write_bundle(folder, bundle, plain_ops=plain)
        report = verify(bundle, student=folder, backends=("onnxruntime",), steps=steps).to_json()
        student = load_student(folder)
        kind = "image" if family in VISION_NAMES else "text"
        inputs = tiny_inputs(family, student, tiny_tokenizer(family), kind=kind)
        cached = torch.equal(run(student, inputs, 16), run(student, inputs, 16, use_cache=False))
    found = next(check for check in report["checks"] if check["level"] == "student" and "steps" in check["name"])
    worst = found["worst_by_kind"]
    return {
        "family": family,
        "steps": steps,
        "ops": "plain" if plain else "fused",
        "logits_worst_over_std": worst["logits"]["error"],
        "state_worst_relative": worst["states"]["error"],
        "verify_ok": report["ok"],
        "cached_equals_uncached": cached,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Measure all families; exit 1 when one is out of tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--families", nargs="*", default=list(FAMILY_NAMES))
    parser.add_argument("--plain-ops", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for family in arguments.families:
        rows.append(measure(family, arguments.steps, arguments.plain_ops))
        print(rows[-1], file=sys.stderr, flush=True)
    columns = ("family", "logits_worst_over_std", "state_worst_relative", "verify_ok", "cached_equals_uncached")
    print(table([{name: _show(row[name]) for name in columns} for row in rows]))
    finish({"benchmark": "family_parity", "rows": rows})
    return 0 if all(row["verify_ok"] and row["cached_equals_uncached"] for row in rows) else 1


def _show(value: object) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
