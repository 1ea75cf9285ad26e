"""Thousands of damaged and hostile pictures and videos: what becomes of each, counted by class.

    python benchmarks/fuzz_media.py --inputs 5000 --seed 1

Every input is read as `run`, `eval` and `distill` read it, in a child process with limits. Classes: read; refused (an
InputError of one line that names the file); and what must not happen: untyped (any other exception), crash, hang,
memory (more than --memory), noise (anything on standard error but libtiff's own words), outside (another file opened,
a connection or a program started: seen by Python's audit events, by the access time of a file that the hostile ones
name, and by a listening socket). The last line is a JSON document; the exit code is 1 when any of these happened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".flv", ".mpg", ".wmv")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "ctypes.dlopen")
WRONG = ("untyped", "crash", "hang", "memory", "noise", "outside")
ADDRESS_SPACE = 8 * 2**30  # of a child: threads of the decoders reserve much that they never touch


def read_media(path: Path, number: int) -> None:
    """Read a file as a prompt would, and every fourth one as part of a data folder first."""
    import numpy as np

    from linmu.formats.data_folder import DataFolder
    from linmu.processing.images import load_image, resize
    from linmu.processing.video import read_clip

    video = path.suffix in VIDEO_ENDINGS
    if number % 4 == 0:
        line = {"prompt": "x", "answer": "y", **({"video": path.name} if video else {"images": [path.name]})}
        (path.parent / "data.jsonl").write_text(json.dumps(line))
        DataFolder.open(path.parent)
    if not video and path.suffix != ".gif":
        np.asarray(load_image(path))
        return

    def evenly(total: int, rate: float) -> np.ndarray:
        return np.linspace(0, total - 1, min(total, 8)).astype(np.int64)

    clip = read_clip(path, evenly, lambda frame, count: resize(frame, (28, 28), 3))
    assert len(clip.frames) == len(clip.timestamps) and sorted(clip.timestamps) == clip.timestamps


def child(seeds: Path, work: Path, seed: int, numbers: range, memory: int) -> None:
    """Read inputs one after the other; a line of JSON before and after each."""
    from linmu.errors import InputError
    from tests.media_seeds import mutated

    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.filterwarnings("ignore", module=r"PIL\b")  # as the command line does
    files = sorted(seeds.iterdir())
    events: list[str] = []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            events.append(f"{event} {arguments[:1]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            name = os.path.realpath(os.fsdecode(arguments[0]))
            if not name.startswith((str(work), sys.base_prefix, sys.prefix, str(ROOT), "/proc/")):
                events.append(f"open {name}")

    for file in (seeds / "a.jpg", seeds / "a.mp4"):  # everything that is imported on first use
        with contextlib.suppress(InputError):
            read_media(Path(work / file.name), 1) if (work / file.name).write_bytes(file.read_bytes()) else None
    sys.addaudithook(audit)
    for number in numbers:
        source = files[number % len(files)]
        path = work / f"in{number}{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), number // len(files) * (1 + seed)))
        events.clear()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        print(json.dumps({"number": number, "seed": source.name}), flush=True)
        started, said, noise = time.perf_counter(), "", os.fstat(2).st_size
        try:
            read_media(path, number)
            kind = "read"
        except InputError as error:
            kind, said = "refused", str(error)
            if "\n" in said or path.name not in said or len(said) > 1500:
                kind = "untyped"
        except Exception as error:  # noqa: BLE001 - this is what is counted
            kind, said = "untyped", f"{type(error).__name__}: {error}"
        peak = next(int(x.split()[1]) for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x) << 10
        outside = [event for event in events if str(path) not in event and "clear_refs" not in event]
        # libtiff writes what it thinks of a damaged file straight to standard error
        noisy = os.fstat(2).st_size > noise and not source.suffix == ".tif"
        kind = "outside" if outside else "memory" if peak > memory else "noise" if noisy else kind
        facts = {"kind": kind, "said": (outside or [said])[0][:300], "peak": peak}
        print(json.dumps({**facts, "seconds": time.perf_counter() - started}), flush=True)
        path.unlink()


def watch(command: list[str], limit: float) -> tuple[list[dict[str, Any]], str | None, str]:
    """(lines of a child, "hang" or "crash" if it ended that way, its standard error)."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1, cwd=ROOT)
        assert process.stdout is not None
        lines: list[dict[str, Any]] = []
        ended = None
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not waiting.select(limit):
                    ended = "hang"
                    process.kill()
                    break
                line = process.stdout.readline()
                if not line:
                    break
                lines.append(json.loads(line))
        if process.wait() != 0 and ended is None:
            ended = "crash"
        errors.seek(0)
        return lines, ended, errors.read()


def run(inputs: int, seed: int, limit: float, memory: int) -> dict[str, Any]:
    """All inputs; the document that is printed."""
    from tests.clips import levels, write_clip
    from tests.media_seeds import write_pictures, write_strangers, write_videos

    counts: Counter[str] = Counter()
    wrong: list[dict[str, Any]] = []
    peak = slowest = 0.0
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        seeds, work = Path(folder).resolve() / "seeds", Path(folder).resolve() / "work"
        seeds.mkdir()
        work.mkdir()
        inner = write_clip(Path(folder) / "inner.ts", levels(3))
        os.utime(inner, (1, inner.stat().st_mtime))
        write_pictures(seeds)
        write_videos(seeds)
        write_strangers(seeds, inner, server.getsockname()[1])
        server.setblocking(False)
        start = 0
        while start < inputs:
            arguments = [str(seeds), str(work), str(seed), str(start), str(inputs), str(memory)]
            lines, ended, noise = watch([sys.executable, __file__, "--child", *arguments], limit)
            begun = [line for line in lines if "number" in line]
            for given, found in zip(begun, (line for line in lines if "kind" in line), strict=False):
                counts[found["kind"]] += 1
                peak, slowest = max(peak, found["peak"]), max(slowest, found["seconds"])
                if found["kind"] in WRONG:
                    wrong.append({**given, **found})
            if ended is not None:
                counts[ended] += 1
                wrong.append({**(begun[-1] if begun else {}), "kind": ended, "said": noise[-300:]})
            if ended is None or not begun:
                break
            start = begun[-1]["number"] + 1
        with contextlib.suppress(BlockingIOError):
            server.accept()
            counts["outside"] += 1
        counts["outside"] += inner.stat().st_atime != 1
    kinds = {kind: counts[kind] for kind in ("read", "refused", *WRONG)}
    figures = {"inputs": inputs, "seed": seed, "peak_mib": peak / 2**20, "slowest_s": slowest}
    return {**figures, **kinds, "wrong": wrong[:50]}


def main() -> None:
    """Fuzz, say what was found, and exit with 1 if it must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=30, help="seconds for one input")
    parser.add_argument("--memory", type=int, default=1024, help="MiB for one input")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        seeds, work, *rest = given.child
        seed, start, stop, memory = map(int, rest)
        child(Path(seeds), Path(work), seed, range(start, stop), memory)
        return
    found = run(given.inputs, given.seed, given.limit, given.memory * 2**20)
    for item in found["wrong"]:
        print(item, file=sys.stderr)
    print(json.dumps(found, sort_keys=True))
    sys.exit(1 if any(found[kind] for kind in WRONG) else 0)


if __name__ == "__main__":
    main()
