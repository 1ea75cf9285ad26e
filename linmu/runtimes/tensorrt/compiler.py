"""Compile one ONNX graph with TensorRT in a process of its own, that an interrupt may kill and a crash may not spread.

TensorRT's own threads outlive a build that is told to stop, and abort the interpreter when it ends; a process that is
killed takes them along, gives back all memory, and its peak is that of one engine.
Run as a program it reads one JSON request from stdin (the arguments of `compile_engine`), writes a JSON line for each
step and one for the result to stdout, and dies when stdin closes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from linmu import errors
from linmu.files.atomic import write_bytes
from linmu.runtimes.tensorrt.builder import Progress, Shapes, build_engine
from linmu.runtimes.tensorrt.toolkit import load_toolkit
from linmu.system.meter import peak_bytes

PROGRAM = "linmu.runtimes.tensorrt.compiler"
KINDS = (errors.BundleError, errors.DeviceError, errors.InputError)


@dataclass(frozen=True)
class CompiledEngine:
    """One compiled graph: seconds, bytes of the engine, the compiler's peak memory, layers, TensorRT's version."""

    seconds: float
    engine_bytes: int
    peak_bytes: int
    layers: int
    version: str


def compile_engine(
    path: Path,
    shapes: Shapes,
    *,
    flavour: str,
    engine: Path | None = None,
    timing_cache: Path | None = None,
    workspace_bytes: int | None = None,
    capability: str | None = None,
    optimization_level: int | None = None,
    progress: Progress | None = None,
) -> CompiledEngine:
    """Compile `path` for the GPU that is here or for `capability` ("8.6"), and write it to `engine` if given.

    `timing_cache` is read and then rewritten where this TensorRT has one.
    Raises what build_engine raises, DeviceError when the compiler dies; an interrupt kills the compiler.
    """
    request = {
        "path": str(path),
        "shapes": shapes,
        "flavour": flavour,
        "workspace_bytes": workspace_bytes,
        "capability": capability,
        "optimization_level": optimization_level,
        "engine": None if engine is None else str(engine),
        "timing_cache": None if timing_cache is None else str(timing_cache),
    }
    with tempfile.TemporaryFile("w+", errors="replace") as log:  # a pipe that nobody reads could fill up
        process = _start(log)
        try:
            answer = _talk(process, json.dumps(request), progress)
        finally:
            process.kill()
            code = process.wait()
        log.seek(0)
        output = log.read()
    if answer is None:
        last = (output.strip().splitlines() or ["it said nothing"])[-1]
        raise errors.DeviceError(f"{path.name}: {flavour} died while compiling", got=f"{_ending(code)}, {last}")
    if "error" in answer:
        raise _error(answer["error"])
    return CompiledEngine(**answer)


def _start(log: IO[str]) -> subprocess.Popen[str]:
    """A new session, so that Ctrl-C on a terminal reaches us and not the compiler."""
    root = str(Path(__file__).resolve().parents[3])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def _talk(process: subprocess.Popen[str], request: str, progress: Progress | None) -> dict[str, Any] | None:
    """Send the request, pass steps on, return the last answer; None when the process died before it.

    A line that is no JSON object is passed over: a process that is killed may leave half of one.
    """
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass
    for line in process.stdout:
        answer = _parsed(line)
        if answer is None:
            continue
        if "step" not in answer:
            return answer
        if progress is not None:
            progress(*answer["step"])
    process.wait()
    return None


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _ending(code: int) -> str:
    """What an exit status says of how a process died: a negative one is the signal that killed it."""
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    memory = " (by the kernel, most likely: the machine ran out of memory)" if -code == signal.SIGKILL else ""
    return f"killed by {name}{memory}"


def _error(facts: dict[str, Any]) -> errors.LinmuError:
    name, what = facts.pop("kind"), facts.pop("what")
    return next(kind for kind in KINDS if kind.__name__ == name)(what, **facts)


def _error_facts(error: errors.LinmuError) -> dict[str, Any]:
    kind = next(kind for kind in KINDS if isinstance(error, kind))
    facts = {"got": error.got, "expected": error.expected, "fix": error.fix}
    return {"kind": kind.__name__, "what": error.what} | {
        name: None if fact is None else str(fact) for name, fact in facts.items()
    }


def _serve(say: Callable[[dict[str, Any]], None], request: dict[str, Any]) -> None:
    """Compile what a request asks for and say how it went."""
    toolkit = load_toolkit(request["flavour"])
    cache = Path(request["timing_cache"]) if request["timing_cache"] else None
    try:
        built = build_engine(
            toolkit,
            Path(request["path"]),
            request["shapes"],
            workspace_bytes=request["workspace_bytes"],
            timing_cache=cache.read_bytes() if cache is not None and cache.is_file() else b"",
            capability=request["capability"],
            optimization_level=request["optimization_level"],
            progress=lambda *step: say({"step": step}),
        )
    except KINDS as error:
        return say({"error": _error_facts(error)})
    if request["engine"]:
        Path(request["engine"]).write_bytes(built.plan)
    if cache is not None and built.timing_cache is not None:
        write_bytes(cache, built.timing_cache)
    say(
        {
            "seconds": round(built.seconds, 3),
            "engine_bytes": built.plan.nbytes,
            "peak_bytes": peak_bytes(),
            "layers": built.layers,
            "version": toolkit.version,
        }
    )


def _die_with_parent() -> None:
    """End at once when whoever asked is gone: nobody waits for the engine any more."""
    sys.stdin.read()
    os._exit(1)


def _main() -> None:
    # what TensorRT prints must not stand between our lines
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    _serve(say, request)
    answers.flush()
    os._exit(0)  # TensorRT's threads may still run; ending the interpreter under them aborts


if __name__ == "__main__":
    _main()
