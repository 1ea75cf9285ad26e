"""One competitor in a process of its own: it reads its prompt, then times bursts of decode steps when asked.

Runtimes that share a process disturb each other: threads of the one still spin while the other is being timed. Here
everyone has a process, as a user would, and all but one of them sleep. `Contender` is the parent's side; run as a
script, this file is the child: a JSON line says what to open, then every line on stdin is a question (`Contender.ask`)
and every line on stdout its answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bandwidth, timed
from ours import OurGraph, OurSession, step_file
from peer import PeerGenerator, PeerGraph
from peer_executorch import Program
from peer_llama import PeerLlama

from linmu.errors import LinmuError
from linmu.system.meter import peak_bytes

WARM_STEPS = 3  # of every turn, not timed: caches and threads are cold after the others' turns
WAKE_S = 0.4  # of plain arithmetic before that: a core that slept runs slower for some tenths of a second

Burst = Callable[[int], float]  # steps -> mean seconds of one


class Contender:
    """The parent's side of one process; `ttft_s` is None where no prompt was read."""

    def __init__(self, **job: Any):
        """Start the process and wait until it is ready; LinmuError with its last words when it dies."""
        self.name = job["name"]
        command = [sys.executable, str(Path(__file__).resolve())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ttft_s: float | None = self.ask(json.dumps(job))

    def seconds(self, steps: int) -> float:
        """Mean seconds of one of `steps` steps in a row."""
        return self.ask(str(steps))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, line: str) -> Any:
        """The answer to a line: "open" (seconds without reading the prompt), "peak" (bytes) or a number of steps."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(line, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise LinmuError(f"the process of {self.name} ended", got=f"exit {self.process.wait()}")
        return json.loads(answer)


def open_job(job: dict[str, Any]) -> tuple[Burst, float | None]:
    """What a job names -> its bursts and its seconds to read the prompt."""
    prompt = np.random.default_rng(job["context"]).integers(3, 49000, job["context"])
    return JOBS[job["name"]](job, prompt)


def _bursts(step: Callable[[], object], threads: int) -> Burst:
    def seconds(steps: int) -> float:
        wake(threads)
        timed(step, WARM_STEPS)
        return timed(step, steps)

    return seconds


def wake(threads: int) -> None:
    """Keep `threads` cores busy for WAKE_S seconds."""
    array, end = np.ones(1 << 16, np.float32), time.perf_counter() + WAKE_S

    def work(_: int) -> None:
        while time.perf_counter() < end:
            np.multiply(array, array)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def _peer_graph(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, None]:
    graph = PeerGraph(Path(job["peer"]), job["threads"], job["context"] + 1)
    return _bursts(lambda: graph.step(job["context"]), job["threads"]), None


def _peer_runtime(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    generator = PeerGenerator(Path(job["peer"]), job["threads"], prompt, job["capacity"])
    return _bursts(generator.step, job["threads"]), generator.prefill_s


def _llama(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    llama = PeerLlama(job["threads"], prompt, job["capacity"], job["llama_amx"])
    return _bursts(llama.step, job["threads"]), llama.prefill_s


def _our_graph(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, None]:
    graph = OurGraph(step_file(Path(job["bundle"])), job["threads"])
    return _bursts(graph.step, job["threads"]), None


def _our_runtime(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    session = OurSession(Path(job["bundle"]), job["threads"])
    return _bursts(session.step, job["threads"]), timed(lambda: session.prefill(prompt))


def _bandwidth(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, None]:
    bandwidth = Bandwidth(job["threads"])
    return lambda _: bandwidth.seconds(), None


def _torch_bf16(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    """PyTorch's bfloat16 forward pass of the teacher over the prompt, cache filled, one row of logits."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(job["teacher"], dtype=torch.bfloat16)
    ids = torch.from_numpy(prompt)[None]
    with torch.no_grad():
        model(ids[:, :64], use_cache=True)
        ttft_s = timed(lambda: model(ids, use_cache=True, logits_to_keep=1))
    return lambda _: 0.0, ttft_s


def _our_forward(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    program = Program(Path(job["phone"]) / "model.pte", job["threads"], whole=True)
    ttft_s = timed(lambda: program.read(prompt))
    return _bursts(program.step, job["threads"]), ttft_s


def _our_step(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    session = OurSession(Path(job["phone"]), job["threads"], "executorch")
    return _bursts(session.step, job["threads"]), timed(lambda: session.prefill(prompt))


def _peer_executorch(job: dict[str, Any], prompt: np.ndarray) -> tuple[Burst, float]:
    program = Program(Path(job["program"]), job["threads"], whole=False)
    ttft_s = timed(lambda: program.read(prompt))
    return _bursts(program.step, job["threads"]), ttft_s


JOBS = {
    "our forward": _our_forward,
    "our step": _our_step,
    "our onnxruntime": _our_runtime,
    "peer executorch": _peer_executorch,
    "peer graph": _peer_graph,
    "peer runtime": _peer_runtime,
    "peer llama.cpp": _llama,
    "torch bf16": _torch_bf16,
    "our graph": _our_graph,
    "our runtime": _our_runtime,
    "bandwidth": _bandwidth,
}


def main() -> None:
    """The child: open, then a burst for every line."""
    job, started = json.loads(sys.stdin.readline()), time.perf_counter()
    burst, ttft_s = open_job(job)
    open_s = time.perf_counter() - started - (ttft_s or 0.0)
    print(json.dumps(ttft_s), flush=True)
    for line in sys.stdin:
        match line.strip():
            case "open":
                answer = open_s
            case "peak":
                answer = peak_bytes()
            case steps:
                answer = burst(int(steps))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
