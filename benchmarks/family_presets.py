"""Every family in every quantized preset: does TensorRT compile the graphs, do they compute what the reference says?

For each family a tiny student (random weights, noise on every new parameter) is calibrated on noise and exported with
every preset of --target jetson and onnx. Jetson graphs are held against the list of TensorRT 10.3's operators and
compiled by TensorRT-RTX for the manifest's profiles, no GPU (each graph in a process of its own). Then `linmu verify
--student` reads a prompt (with a picture where the family has a tower) and takes the same --steps tokens in ONNX
Runtime and in the quantized reference, comparing every logit and every state element at every step. Presets of --target
android run only when they are named: their programs take minutes each to lower; "share" is what XNNPACK takes, at
least, of a method's multiply-accumulates, and what phones refuse is said with its reason.

    python benchmarks/family_presets.py out/family-presets.jsonl [--families smolvlm ...] [--presets jetson:int8 ...]

A row is a JSON line in the file as soon as it is known; a second run goes on. The last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import finish, say, table  # noqa: E402
from linmu.calibration.collect import calibrate  # noqa: E402
from linmu.errors import CheckFailed, InputError  # noqa: E402
from linmu.export.targets import write_bundle  # noqa: E402
from linmu.system.components import require  # noqa: E402
from linmu.tools.verify import verify  # noqa: E402
from tests.folders import student_folder  # noqa: E402
from tests.tiny import FAMILY_NAMES  # noqa: E402

CASES = ("jetson:fp16", "jetson:int8", "jetson:int4", "jetson:fp8", "onnx:int8", "onnx:int4")
PHONES = ("android:fp32", "android:8da4w", "android:8da8w")
FLOAT = ("fp16", "fp32")  # presets without a calibration record
CALIBRATION = {"samples": 4, "decode_tokens": 8, "long_tokens": 64}
GRAPHS = ("vision", "prefill", "step")


def measure(student: Path, record: Path, family: str, case: str, steps: int) -> dict[str, Any]:
    """One row: what compiled, and the worst differences over the roll-out; `failed` says what did not."""
    target, preset = case.split(":")
    row: dict[str, Any] = {"family": family, "case": case, "steps": steps}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        phone, options = target == "android", {} if preset in FLOAT else {"calibration": record}
        try:
            report = write_bundle(student, bundle, target=target, preset=preset, **options)
        except CheckFailed as error:
            return row | {"failed": str(error)}
        except InputError as error:
            return row | {"refused": str(error)}
        row |= {"check": report.check, "export_s": round(time.perf_counter() - start, 1)}
        if phone:
            row["share"] = min(method.share for method in report.graphs.values())
        row["float_matrices"] = [found.name for found in report.matrices if found.reason]
        verified = verify(
            bundle,
            student=student,
            calibration=options.get("calibration") if phone else None,
            backends=("executorch",) if phone else ("onnxruntime",),
            steps=steps,
        ).to_json()
    found = next(c for c in verified["checks"] if c["level"] == "student" and "steps" in c["name"])
    row |= {"ok": verified["ok"]} | {kind: worst["error"] for kind, worst in found["worst_by_kind"].items()}
    if not verified["ok"]:
        row["failed"] = "; ".join(f"{c['level']} {c['name']}: {c['note']}" for c in verified["checks"] if not c["ok"])
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table: engine sizes and seconds by graph, worst differences."""
    graphs = row.get("check", {}).get("graphs", {})
    cells = {"family": row["family"], "case": row["case"]}
    for name in GRAPHS:
        engine = graphs.get(name)
        cells[f"{name} s, MB"] = f"{engine['seconds']:.1f}, {engine['engine_bytes'] / 1e6:.1f}" if engine else ""
    cells |= {name: f"{row[name]:.1e}" if name in row else "" for name in ("logits", "states")}
    cells["share"] = f"{row['share']:.1%}" if "share" in row else ""
    return cells | {"verdict": row.get("failed", row.get("refused", "ok"))}


def main() -> int:
    """Measure what the file does not hold yet; exit 1 when something does not compile or agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--families", nargs="*", default=list(FAMILY_NAMES))
    parser.add_argument("--presets", nargs="*", default=list(CASES), choices=CASES + PHONES)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    require("tensorrt_rtx", needed_for="this benchmark")
    done = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    known = {(row["family"], row["case"]) for row in done}
    for family in args.families:
        missing = [case for case in args.presets if (family, case) not in known]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            student, record = student_folder(family, Path(scratch)), Path(scratch) / "calib.safetensors"
            calibrate(student, record, allow_random=True, **CALIBRATION)
            for case in missing:
                done.append(measure(student, record, family, case, args.steps))
                with args.rows.open("a") as file:
                    print(json.dumps(done[-1]), file=file)
                say(" | ".join(shown(done[-1]).values()))
    print(table([shown(row) for row in done]))
    finish({"benchmark": "family_presets", "rows": done})
    return 1 if any("failed" in row for row in done) else 0


if __name__ == "__main__":
    raise SystemExit(main())
