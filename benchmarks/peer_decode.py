"""Decode speed against ONNX Runtime GenAI and llama.cpp: the same teacher, the same threads, turns taken in one run.

What is timed is one token in, one row of logits out. At one token a step every weight is read once from memory, so
the limit is bandwidth / weight bytes; attention adds a KV cache that grows with the context, our state does not.
Ours and the peer's are each run two ways (bare graph with I/O binding; the full runtime), the faster one of each is
compared. Everyone has a process of its own (contender.py) and takes turns, `bandwidth` too; tokens/s are 1 / median
seconds of a burst of steps.
With --quant int4 GenAI's model is int4, too, and llama.cpp joins with its own Q4_1 file. TTFT is the whole prompt in
the full runtimes, once each, one after the other; with int4 also PyTorch's bf16 forward pass of the teacher.

    python benchmarks/peer_decode.py [--quant int4] [--bundle DIR] [--peer-only] [--contexts 512,2048,8192]

Needs: pip install onnxruntime-genai (and llama-cpp-python); the example weights (see examples/pretrained.py).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from contender import WARM_STEPS, Contender
from harness import BANDWIDTH_BYTES, finish, interleave, machine, medians, numbers, say, table
from op_profile import profile_by_operator, weight_bytes
from ours import OurGraph, build_bundle, step_file
from peer import build_peer, build_teacher

OUT = Path(__file__).parents[1] / "out"


def measure(context: int, args: argparse.Namespace, folders: dict[str, str]) -> dict[str, Any]:
    """Tokens/s of every way at one context length, their ratio and their share of the bandwidth limit."""
    names = ["peer graph", "peer runtime", "bandwidth"]
    names += ["peer llama.cpp"] if args.quant != "none" else []
    names += ["our graph", "our runtime"] if "bundle" in folders else []
    job = {"context": context, "threads": args.threads, "llama_amx": args.llama_amx, **folders}
    job["capacity"] = context + (args.burst + WARM_STEPS) * (args.rounds + 1) + 1
    if args.quant != "none":
        torch = Contender(name="torch bf16", **job)
        torch.close()
    contenders = [Contender(name=name, **job) for name in names]
    cases = {c.name: partial(c.seconds, args.burst) for c in contenders}
    interleave(cases, 1)
    row = summarise(context, medians(interleave(cases, args.rounds)), BANDWIDTH_BYTES)
    for contender in contenders:
        contender.close()
    ttft = {c.name: c.ttft_s for c in contenders if c.ttft_s is not None}
    if args.quant != "none":
        ttft["torch bf16"] = torch.ttft_s
    return row | {f"{name.replace(' ', '_')}_ttft_s": seconds for name, seconds in ttft.items()}


def summarise(context: int, seconds: dict[str, float], read_bytes: int) -> dict[str, Any]:
    """Median seconds of every case at one context -> tokens/s of each, the faster way of each side, their ratio."""
    row: dict[str, Any] = {"context": context, "bandwidth_gb_s": read_bytes / seconds["bandwidth"] / 1e9}
    for name, value in seconds.items():
        if name != "bandwidth":
            row[name.replace(" ", "_") + "_tokens_s"] = 1 / value
    for side in ("peer", "our"):
        ways = {name: value for name, value in seconds.items() if name.startswith(side)}
        if ways:
            best = min(ways, key=ways.__getitem__)
            row[f"{side}_best"], row[f"{side}_tokens_s"] = best.split()[1], 1 / ways[best]
    if "our_tokens_s" in row:
        row["ratio"] = row["our_tokens_s"] / row["peer_tokens_s"]
    return row


def main() -> None:
    """Build what is missing, measure every context, profile our step, print the JSON line."""
    args = arguments()
    teacher = build_teacher(args.out / "smollm2")
    precision = "fp32" if args.quant == "none" else args.quant
    peer_folder = build_peer(teacher, args.peer or args.out / f"peer-{precision}", precision)
    bundle = None
    if not args.peer_only:
        bundle = args.bundle or build_bundle(teacher, args.out / "smollm2-bundle", args.quant)
    read = {"peer": weight_bytes(peer_folder / "model.onnx")}
    if bundle is not None:
        read["our"] = weight_bytes(step_file(bundle))
    rows = []
    folders = {"peer": str(peer_folder), "teacher": str(teacher)} | ({"bundle": str(bundle)} if bundle else {})
    for context in args.contexts:
        row = measure(context, args, folders)
        for side, size in read.items():
            row[f"{side}_limit_share"] = row[f"{side}_graph_tokens_s"] * size / (row["bandwidth_gb_s"] * 1e9)
        rows.append(row)
        say(table([row]))
    result: dict[str, Any] = {"benchmark": "peer_decode", "threads": args.threads, "machine": machine(), "rows": rows}
    result |= {"quant": args.quant, "llama_amx": args.llama_amx}
    result["weight_bytes"] = read
    if bundle is not None:
        graph = OurGraph(step_file(bundle), args.threads)
        result["state_bytes"] = graph.state_bytes
        result["profile"] = profile_by_operator(step_file(bundle), graph.feeds, args.threads)
        say(table(result["profile"]))
    finish(result)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="our exported fp32 bundle (made in --out when absent)")
    parser.add_argument("--peer", type=Path, help="the peer's export (made in --out when absent)")
    parser.add_argument("--quant", choices=("none", "int4"), default="none", help="precision of both sides")
    parser.add_argument("--llama-amx", action="store_true", help="let llama.cpp use the matrix units (may crash)")
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone")
    parser.add_argument("--contexts", type=numbers, default="512,2048,8192")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--burst", type=int, default=24, help="steps timed in a row before the other's turn")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
