"""Whether TensorRT compiles the jetson graphs of every family: tiny students, TensorRT-RTX, no GPU.

For each family the graphs of a tiny student (random weights, noise on every new parameter) are written as --target
jetson does: every node is held against the list of TensorRT 10.3's operators, then vision, prefill and step are parsed
and compiled for SM86 with the optimisation profiles of the manifest, each in a process of its own. Printed are seconds,
engine size and peak memory of that process, most of which are the compiler's libraries.
Run: python benchmarks/jetson_compile.py
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import finish, table  # noqa: E402
from linmu.doctor import require  # noqa: E402
from linmu.errors import CheckFailed  # noqa: E402
from linmu.export.bundle_writer import write_graphs  # noqa: E402
from linmu.export.engine_check import check_engines  # noqa: E402
from linmu.export.jetson_bundle import jetson_plan  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402
from linmu.processing.convert import write_processor  # noqa: E402
from tests.folders import student_folder  # noqa: E402
from tests.tiny import FAMILY_NAMES  # noqa: E402


def measure(family: str, precision: str) -> list[dict]:
    """Export one family; a row for each of its graphs, or one that says what failed."""
    with tempfile.TemporaryDirectory() as scratch:
        student, folder = student_folder(family, Path(scratch)), Path(scratch) / "graphs"
        folder.mkdir()
        write_processor(student, folder)
        plan = jetson_plan(precision)
        manifest, _ = write_graphs(folder, student, load_student(student), plan)
        try:
            check = check_engines(folder, manifest)
        except CheckFailed as error:
            return [{"family": family, "graph": "", "compiles": False, "error": str(error)}]
    return [
        {
            "family": family,
            "graph": name,
            "compiles": True,
            "seconds": round(found["seconds"], 1),
            "engine_mb": round(found["engine_bytes"] / 1e6, 2),
            "peak_mb": round(found["peak_bytes"] / 1e6),
            "layers": found["layers"],
        }
        for name, found in check["graphs"].items()
    ]


def main() -> int:
    """Measure all families; exit 1 when a graph does not compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(FAMILY_NAMES))
    parser.add_argument("--quant", default="fp16")
    arguments = parser.parse_args()
    require("tensorrt_rtx", needed_for="this benchmark")
    rows: list[dict] = []
    for family in arguments.families:
        found = measure(family, arguments.quant)
        print(found, file=sys.stderr, flush=True)
        rows += found
    columns = ("family", "graph", "compiles", "seconds", "engine_mb", "peak_mb", "layers")
    print(table([{name: row.get(name, "") for name in columns} for row in rows]))
    finish({"benchmark": "jetson_compile", "quant": arguments.quant, "rows": rows})
    return 0 if all(row["compiles"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
