"""Our side: the converted teacher's bundle, and two ways of running its step, as the peer has two.

- `OurGraph`: the step graph on plain ONNX Runtime with I/O binding and two state sets that swap roles.
- `OurSession`: what users call, `linmu.load(bundle)`, through its runner.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from harness import say

from linmu.errors import LinmuError

PIECE = 2048
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def build_bundle(
    teacher: Path, out: Path, quant: str = "none", target: str = "onnx", settings: Mapping[str, object] | None = None
) -> Path:
    """Convert the teacher and export it for a target through the command line, once: `out`, or `out`-`quant`.

    settings: of the M-MATE block, "text_window" and the like. Quantized: calibrated on noise, which speed does not
    depend on.
    """
    bundle = out if quant == "none" else out.with_name(f"{out.name}-{quant}")
    if not (bundle / "manifest.json").exists():
        student, record = out.with_name(out.name + "-student"), out.with_name(out.name + "-calib.safetensors")
        if not (student / "config.json").exists():
            chosen = (word for name, value in (settings or {}).items() for word in ("--set", f"{name}={value}"))
            _linmu("convert", str(teacher), "-o", str(student), *chosen)
        if quant != "none" and not record.exists():
            few = ("--samples", "2", "--decode-tokens", "4", "--long-tokens", "16")
            _linmu("calibrate", str(student), "--allow-random", *few, "-o", str(record))
        options = () if quant == "none" else ("--calib", str(record))
        _linmu("export", str(student), "--target", target, "--quant", quant, *options, "-o", str(bundle))
    return bundle


def _linmu(*arguments: str) -> None:
    say("linmu " + " ".join(arguments) + " ...")
    command = [sys.executable, "-m", "linmu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LinmuError(f"linmu {arguments[0]} failed", got=(done.stderr.strip().splitlines() or ["no message"])[-1])


def step_file(bundle: Path) -> Path:
    """The step graph's file, as the manifest names it."""
    return bundle / json.loads((bundle / "manifest.json").read_text())["graphs"]["step"]["file"]


class OurGraph:
    """The step graph alone: state lives in two sets of buffers, past and present in turn."""

    def __init__(self, path: Path, threads: int):
        """Open the graph and bind both directions once; symbolic dimensions are 1, states start at zero."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.feeds = {item.name: _zeros(item) for item in self.session.get_inputs()}
        states = [name for name in self.feeds if name.startswith("past.")]
        self.state_bytes = sum(self.feeds[name].nbytes for name in states)
        value = ort.OrtValue.ortvalue_from_numpy
        tokens = {name: value(array) for name, array in self.feeds.items() if name not in states}
        sets = [{name: value(self.feeds[name].copy()) for name in states} for _ in range(2)]
        self.bindings = [self._bind(tokens, sets[turn], sets[1 - turn]) for turn in range(2)]
        self.turn = 0

    def _bind(self, tokens: dict, past: dict, present: dict) -> object:
        binding = self.session.io_binding()
        for name, value in {**tokens, **past}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in present.items():
            binding.bind_ortvalue_output(name.replace("past.", "present."), value)
        for item in self.session.get_outputs():
            if not item.name.startswith("present."):
                binding.bind_output(item.name, "cpu")
        return binding

    def step(self) -> None:
        """One decode step; the new state becomes the next step's past."""
        self.session.run_with_iobinding(self.bindings[self.turn])
        self.turn = 1 - self.turn


def _zeros(item: Any) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else 1 for dim in item.shape]
    return np.zeros(shape, dtype=NUMPY_TYPES[item.type])


class OurSession:
    """The bundle as users open it: prompts and steps through the session's runner, which updates the state it is given.

    A prompt is read in pieces of at most PIECE tokens: a piece after another equals one call, and bounds the memory.
    """

    def __init__(self, bundle: Path, threads: int, backend: str = "onnxruntime"):
        """Open a text-only bundle with `threads` threads."""
        import linmu

        self.session = linmu.load(bundle, backend=backend, threads=threads)
        self.piece = int(self.session.bundle.manifest.program.get("piece_tokens", PIECE))  # a program takes no more
        self.runner = self.session.runner
        self.state = self.runner.new_state()
        self.length = 0

    def prefill(self, ids: np.ndarray) -> None:
        """Read a prompt [S] of token ids into a fresh state."""
        from linmu.runtimes.base import PromptPiece

        self.state.zero()
        for start in range(0, len(ids), self.piece):
            piece = ids[start : start + self.piece].astype(np.int64)
            positions = np.arange(start, start + len(piece), dtype=np.int64)[None]
            self.runner.prefill(PromptPiece(self.runner.embed(piece)[None], positions, {}, None, start), self.state)
        self.length = len(ids)

    def step(self, token: int = 42) -> None:
        """One decode step after whatever was read before."""
        self.runner.step(token, self.length, self.length, self.state)
        self.length += 1
