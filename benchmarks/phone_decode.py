"""Decode speed and TTFT on ExecuTorch: our student against ExecuTorch's own export of the teacher with its KV cache.

Both are 8da4w with group 32 on XNNPACK, in this machine's CPU; ONNX Runtime runs our int4 bundle of the same student
beside them. `forward` keeps its state in the program, as the stock runners call it; `step` takes and gives it. Everyone
has a process of its own and takes turns (contender.py); tokens/s are 1 / median seconds of a burst of steps. Peak
memory is the process's own, Python and its libraries included. The last line is JSON.

    python benchmarks/phone_decode.py [--contexts 512,2048,8192] [--threads 2]

Needs: pip install 'linmu[mobile]'; the example weights (see examples/pretrained.py). Students are calibrated on noise.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from contender import WARM_STEPS, Contender
from harness import finish, interleave, machine, medians, numbers, say, table
from ours import build_bundle
from peer import build_teacher
from peer_executorch import build_program

OUT = Path(__file__).parents[1] / "out"
NAMES = ("our forward", "our step", "our onnxruntime", "peer executorch")


def measure(context: int, args: argparse.Namespace, folders: dict[str, str]) -> dict[str, Any]:
    """Every contender at one context length: tokens/s, TTFT, seconds to open, peak memory; ratios to the peer."""
    contenders = [Contender(name=name, context=context, threads=args.threads, **folders) for name in NAMES]
    cases = {c.name: partial(c.seconds, args.burst) for c in contenders}
    interleave(cases, 1)
    seconds = medians(interleave(cases, args.rounds))
    row: dict[str, Any] = {"context": context}
    for contender in contenders:
        name = contender.name.replace(" ", "_")
        row |= {
            f"{name}_tokens_s": 1 / seconds[contender.name],
            f"{name}_ttft_s": contender.ttft_s,
            f"{name}_open_s": contender.ask("open"),
            f"{name}_peak_mib": contender.ask("peak") / 2**20,
        }
        contender.close()
    best = max(row["our_forward_tokens_s"], row["our_step_tokens_s"])
    return row | {
        "decode_ratio": best / row["peer_executorch_tokens_s"],
        "ttft_ratio": row["our_forward_ttft_s"] / row["peer_executorch_ttft_s"],
    }


def main() -> None:
    """Build what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--burst", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    teacher = build_teacher(OUT / "smollm2")
    room = max(args.contexts) + (args.burst + WARM_STEPS) * (args.rounds + 1) + 1
    folders = {
        "bundle": str(build_bundle(teacher, OUT / "smollm2-bundle", "int4")),
        "phone": str(build_bundle(teacher, OUT / "smollm2-bundle", "8da4w", "android")),
        "program": str(build_program(teacher, OUT / "smollm2-executorch", -(-room // 256) * 256)),
    }
    rows = [measure(context, args, folders) for context in args.contexts]
    columns = [f"{name.replace(' ', '_')}_{what}" for what in ("tokens_s", "ttft_s", "peak_mib") for name in NAMES]
    say(table([{name: row[name] for name in ("context", *columns, "decode_ratio", "ttft_ratio")} for row in rows]))
    sizes = {
        name: Path(folders[name], *(["model.pte"] if name == "phone" else [])).stat().st_size
        for name in ("phone", "program")
    }
    about = {"benchmark": "phone_decode", "machine": machine(), "threads": args.threads, "file_bytes": sizes}
    finish(about | {"rows": rows})


if __name__ == "__main__":
    main()
