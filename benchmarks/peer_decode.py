"""Decode speed against ONNX Runtime GenAI: the same teacher, fp32, the same threads, turns taken in one run.

What is timed is one token in, one row of logits out. At one token a step every weight is read once from memory, so
the limit is bandwidth / weight bytes; attention adds a KV cache that grows with the context, our state does not.
Ours and the peer's are each run two ways (bare graph with I/O binding; the full runtime), the faster one of each is
compared. Tokens/s are 1 / median seconds of a burst of steps; `bandwidth` takes its turn in every round too.

    python benchmarks/peer_decode.py [--bundle DIR] [--peer-only] [--contexts 512,2048,8192]

Needs: pip install onnxruntime-genai; the example weights (see examples/pretrained.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bandwidth, finish, interleave, machine, medians, numbers, say, table, timed
from op_profile import profile_by_operator, weight_bytes
from ours import OurGraph, OurSession, build_bundle, step_file
from peer import PeerGenerator, PeerGraph, build_peer, build_teacher

OUT = Path(__file__).parents[1] / "out"


def measure(
    context: int,
    peer: PeerGraph,
    peer_folder: Path,
    bundle: Path | None,
    bandwidth: Bandwidth,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Tokens/s of every way at one context length, their ratio and their share of the bandwidth limit."""
    burst = args.burst
    prompt = np.random.default_rng(context).integers(3, 49000, context)
    generator = PeerGenerator(peer_folder, args.threads, prompt, context + burst * (args.rounds + 1) + 1)
    cases: dict[str, Callable[[], float]] = {
        "peer graph": lambda: timed(lambda: peer.step(context), burst),
        "peer runtime": lambda: timed(generator.step, burst),
        "bandwidth": bandwidth.seconds,
    }
    if bundle is not None:
        graph, session = OurGraph(step_file(bundle), args.threads), OurSession(bundle, args.threads)
        session.prefill(prompt)
        cases["our graph"] = lambda: timed(graph.step, burst)
        cases["our runtime"] = lambda: timed(session.step, burst)
    interleave(cases, 1)
    return summarise(context, medians(interleave(cases, args.rounds)), bandwidth.nbytes)


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
    peer_folder = build_peer(teacher, args.peer or args.out / "peer-fp32")
    bundle = None if args.peer_only else build_bundle(teacher, args.bundle or args.out / "smollm2-bundle")
    peer = PeerGraph(peer_folder, args.threads, max(args.contexts) + 1)
    read = {"peer": weight_bytes(peer_folder / "model.onnx")}
    if bundle is not None:
        read["our"] = weight_bytes(step_file(bundle))
    bandwidth, rows = Bandwidth(args.threads), []
    for context in args.contexts:
        row = measure(context, peer, peer_folder, bundle, bandwidth, args)
        for side, size in read.items():
            row[f"{side}_limit_share"] = row[f"{side}_tokens_s"] * size / (row["bandwidth_gb_s"] * 1e9)
        rows.append(row)
        say(table([row]))
    result: dict[str, Any] = {"benchmark": "peer_decode", "threads": args.threads, "machine": machine(), "rows": rows}
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
    parser.add_argument("--peer-only", action="store_true", help="measure the peer alone")
    parser.add_argument("--contexts", type=numbers, default="512,2048,8192")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--burst", type=int, default=8, help="steps timed in a row before the other's turn")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
