"""Hostile bundles, states, golden files and calibration records with correct hashes: what becomes of them.

    python benchmarks/fuzz_bundles.py BUNDLE [--count 1000] [--seed 0] [--part bundle[:500]]... [--calib FILE]

Every input is one seeded mutation (fuzz_mutations.py) of a good one, with hashes repaired where a stranger could. It is
used in a process of its own, with limits of memory and time, which notes files that are opened outside. Counted by
class: refused (a LinmuError) | works, same answer | works, other answer | failed by verify (golden files) | not a
LinmuError | traceback (an exception that is no Exception) | crash | hang | >2 GB | outside read. The last line is JSON;
exit code 1 when anything is in one of the last six.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutations import Mutation, bytes_of, graph, json_file, kind_of, repair, tensors, values_of, write
from safetensors import safe_open
from safetensors.numpy import save

from linmu.calibration import record
from linmu.formats import state_file

BAD = ("not a LinmuError", "traceback", "crash", "hang", ">2 GB", "outside read")
CLASSES = ("refused", "works, same answer", "works, other answer", "failed by verify", *BAD)
SECONDS, MOST_BYTES = 20, 2 << 30
QUESTION, TOKENS = "What color is the star?", 4
CODE = str(Path(record.__file__).resolve().parents[1])  # of linmu itself: some modules are imported late
STATE, RECORD = "state.safetensors", "record.safetensors"


class Part:
    """One kind of input: where mutations happen, and a function folder -> answer that uses the spoilt thing."""

    def __init__(self, mutations: list[tuple[int, Mutation]], use: Callable[[Path], Any], mend: Callable[[Path], None]):
        self.weights, self.mutations = zip(*mutations, strict=True)
        self.use, self.mend = use, mend


def ask(folder: Path) -> list[int]:
    """Tokens of an answer; a picture where the bundle knows pictures."""
    from linmu.runtimes.session import load

    with load(folder, "onnxruntime", threads=1) as session:
        pictures = [] if "vision" not in session.bundle.manifest.graphs else [picture()]
        return list(session.generate(QUESTION, pictures, max_new_tokens=TOKENS).token_ids)


def picture() -> Any:
    """A small picture, always the same."""
    from linmu.verification.golden import synthetic_picture

    return synthetic_picture()


def go_on(folder: Path) -> list[int]:
    """Load the state and go on with a text."""
    from linmu.runtimes.session import load

    with load(folder, "onnxruntime", threads=1, verify_hashes=False) as session:
        session.state.load(folder.parent / "side" / STATE)
        return list(session.generate("And then?", max_new_tokens=TOKENS).token_ids)


def verified(folder: Path) -> str:
    """Whether verify agrees, on two steps."""
    from linmu.tools.verify import verify

    return "same" if verify(folder, backends=("onnxruntime",), steps=2).ok else "failed"


def calibrated(folder: Path) -> list[float]:
    """What quantization reads of a record."""
    read = record.read_record(folder.parent / "side" / RECORD)
    found = [float(np.sum(x.amax)) for x in read.inputs.values()]
    return [*found, float(read.done), *(float(np.sum(x)) for x in read.states.values()), len(str(read.summary()))]


def side(mutation: Mutation) -> Mutation:
    """A mutation of what lies beside the bundle."""
    return lambda folder, dice: mutation(folder.parent / "side", dice)


def mended(name: str, digest: Callable[[dict[str, str], dict[str, np.ndarray]], str]) -> Callable[[Path], None]:
    """The sha256 of a file beside the bundle, made right again where there is a file still."""

    def mend(folder: Path) -> None:
        path = folder.parent / "side" / name
        if path.is_symlink() or not path.is_file():
            return
        with suppress(Exception):
            with safe_open(path, "np") as file:
                metadata = dict(file.metadata())
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            write(path, save(found, {**metadata, "sha256": digest(metadata, found)}))

    return mend


def parts(bundle: Path) -> dict[str, Part]:
    """Everything that can be spoilt of this bundle."""
    names = [path.relative_to(bundle).as_posix() for path in sorted(bundle.rglob("*")) if path.is_file()]
    graphs = [name for name in ("prefill.onnx", "step.onnx", "vision.onnx") if name in names]
    golden = [name for name in names if name.endswith(".safetensors")]
    documents = ["decoder.json", "processor.json", "tokenizer/tokenizer.json"]
    everything = [name for name in names if not name.startswith("golden/")]
    return {
        "bundle": Part(
            [
                (6, json_file("manifest.json")),
                *((3, json_file(name)) for name in documents),
                *((5, graph(name)) for name in graphs),
                *((1, bytes_of(name)) for name in (*documents, *graphs)),
                (1, bytes_of("manifest.json")),
                *((1, kind_of(name)) for name in everything),
            ],
            ask,
            repair,
        ),
        "state": Part(
            [
                (3, side(tensors(STATE))),
                (2, side(values_of(STATE))),
                (1, side(bytes_of(STATE))),
                (1, side(kind_of(STATE, outside=False))),
            ],
            go_on,
            mended(STATE, state_file._digest),
        ),
        "golden": Part(
            [
                (3, json_file("golden/prompts.json")),
                (1, json_file("manifest.json")),
                *((2, tensors(name)) for name in golden),
                *((1, values_of(name)) for name in golden),
                *((1, bytes_of(name)) for name in golden),
                (1, kind_of("golden/picture.png")),
            ],
            verified,
            repair,
        ),
        "record": Part(
            [
                (3, side(tensors(RECORD))),
                (2, side(values_of(RECORD))),
                (1, side(bytes_of(RECORD))),
                (1, side(kind_of(RECORD, outside=False))),
            ],
            calibrated,
            mended(RECORD, record.digest),
        ),
    }


def child(use: Callable[[Path], Any], folder: Path, pipe: int) -> None:
    """Use one input and write its class and answer; never returns."""
    from linmu.errors import LinmuError

    opened: list[str] = []
    inside = str(folder.parent)

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path == os.path.realpath(tempfile.gettempdir()):
                return  # the folder itself: a new file without a name (tokenizers' panics are read from one)
            if (
                "outside.data" in path
                or path.startswith(("/etc/hostname", "/dev/zero"))
                or (
                    path.startswith(tempfile.gettempdir())
                    and not path.startswith((inside, CODE, os.path.realpath(sys.prefix)))
                )
            ):
                opened.append(path)

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES * 4, MOST_BYTES * 4))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(watch)
    answer: Any = None
    try:
        answer, kind, note = use(folder), "works", ""
    except LinmuError as error:
        kind, note = "refused", str(error)
        note = ("traceback: more than one line " if "\n" in note else "") + note
    except MemoryError as error:
        kind, note = ">2 GB", repr(error)
    except Exception as error:
        frames, place = error.__traceback__, ""
        while frames is not None:
            if "linmu" in frames.tb_frame.f_code.co_filename:
                place = f"{Path(frames.tb_frame.f_code.co_filename).name}:{frames.tb_lineno}"
            frames = frames.tb_next
        kind, note = "not a LinmuError", f"{place} {error!r}"
    except BaseException as error:
        kind, note = "traceback", repr(error)
    maps = Path("/proc/self/maps").read_text()
    if opened or "outside.data" in maps:
        kind, note = "outside read", str(opened[:3] or "mapped")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MOST_BYTES:
        kind = ">2 GB"
    os.write(pipe, json.dumps([kind, answer, note[:300]]).encode())
    os._exit(0)


def used(use: Callable[[Path], Any], folder: Path) -> tuple[str, Any, str]:
    """(class, answer, what was said) of one input, in a process of its own."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        child(use, folder, writing)
    os.close(writing)
    said, end = b"", time.monotonic() + SECONDS
    while (left := end - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        said += piece
    hung = time.monotonic() >= end
    if hung:
        os.kill(process, signal.SIGKILL)
    os.close(reading)
    status = os.waitpid(process, 0)[1]
    if said:
        kind, answer, note = json.loads(said)
        return kind, answer, note
    stopped = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if hung or stopped == signal.SIGXCPU:
        return "hang", None, "out of time"
    return "crash", None, f"signal {stopped}, status {status}"


def copied(good: Path, place: Path) -> Path:
    """A folder of hard links to a good bundle, with what may lie beside it."""
    shutil.copytree(good, place / "bundle", copy_function=os.link)
    shutil.copytree(good.parent / "side", place / "side", copy_function=os.link)
    (place / "outside.data").write_bytes(bytes(1 << 16))
    (place.parent / "outside.data").write_bytes(bytes(1 << 16))
    return place / "bundle"


def fuzz(good: Path, part: Part, count: int, seed: str) -> Iterator[tuple[str, str, str]]:
    """(class, what was done, what was said) of `count` inputs."""
    kind, wanted, note = used(part.use, good)
    if kind != "works" or wanted == "failed":
        raise SystemExit(f"the good one does not work: {kind} {note}")
    for number in range(count):
        dice = random.Random(f"{seed}/{number}")
        with tempfile.TemporaryDirectory(dir=good.parent) as place:
            folder = copied(good, Path(place) / "in")
            mutation = dice.choices(part.mutations, part.weights)[0]
            try:
                what = mutation(folder, dice)
            except (ValueError, IndexError, OSError, TypeError) as error:  # this mutation has no place here
                what = f"nothing ({error!r:.60})"
            if dice.random() < 0.85:
                part.mend(folder)
            kind, answer, note = used(part.use, folder)
        if kind == "works":
            same = "same" if answer == wanted else "other"
            kind = "failed by verify" if answer == "failed" else f"works, {same} answer"
        yield kind, f"{seed}/{number} {what}", note


def prepare(bundle: Path, place: Path, calib: Path | None) -> Path:
    """A copy of the bundle with a saved state and a calibration record beside it."""
    good = place / "bundle"
    shutil.copytree(bundle, good, ignore=shutil.ignore_patterns("engines"))
    (place / "side").mkdir()
    if calib is not None:
        shutil.copy(calib, place / "side" / RECORD)

    def save(folder: Path) -> int:
        from linmu.runtimes.session import load

        with load(folder, "onnxruntime", threads=1) as session:
            session.generate(QUESTION, max_new_tokens=TOKENS)
            session.state.save(place / "side" / STATE)
        return 0

    kind, _, note = used(save, good)
    if kind != "works":
        raise SystemExit(f"the good one does not work: {note}")
    return good


def run(
    bundle: Path,
    chosen: dict[str, int],
    seed: int,
    calib: Path | None = None,
    show: Callable[[str, str, str], None] = lambda *_: None,
) -> dict[str, Counter[str]]:
    """Counts by part and class; `chosen`: inputs by part."""
    import linmu.runtimes.ort_runner
    import linmu.tools.verify  # noqa: F401  imported once, before the processes part

    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        good = prepare(bundle, Path(place), calib)
        for name, count in chosen.items():
            counts[name] = Counter()
            for kind, what, note in fuzz(good, parts(bundle)[name], count, f"{seed}/{name}"):
                counts[name][kind] += 1
                show(kind, what, note)
    return counts


def main() -> int:
    """Run as asked, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", action="append", metavar="bundle|state|golden|record[:COUNT]")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--show", action="append", default=list(BAD))
    options = parser.parse_args()
    asked = options.part or ["bundle", "state", "golden"] + ["record"] * (options.calib is not None)
    pairs = [text.partition(":") for text in asked]
    chosen = {name: int(count or options.count) for name, _, count in pairs}

    def show(kind: str, what: str, note: str) -> None:
        if kind in options.show or "all" in options.show:
            print(f"{kind}: {what} | {note}", file=sys.stderr, flush=True)

    counts = run(options.bundle, chosen, options.seed, options.calib, show)
    print("| part | inputs | " + " | ".join(CLASSES) + " |\n|---|" + "--:|" * (len(CLASSES) + 1))
    for name, found in counts.items():
        print(f"| {name} | {sum(found.values())} | " + " | ".join(str(found[kind] or "") for kind in CLASSES) + " |")
    print(json.dumps({"seed": options.seed, "counts": counts}))
    return int(any(found[kind] for found in counts.values() for kind in BAD))


if __name__ == "__main__":
    sys.exit(main())
