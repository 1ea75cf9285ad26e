"""`linmu watch`: a stream is read into a state, and asked again and again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from linmu.commands.options import BackendOption, BundleArgument, ThreadsOption
from linmu.commands.output import Results, open_results, say
from linmu.errors import InputError, LinmuError
from linmu.files.atomic import check_file_target
from linmu.system.interrupts import ignore_further_stops

EXAMPLES = (
    'Example: linmu watch bundle door.mp4 --every 5s --prompt "Is anyone at the door?" --alert yes or '
    "linmu watch bundle rtsp://camera/1 --keep restart:10m:1m --save-state door.safetensors"
)


def command(
    bundle: BundleArgument,
    source: Annotated[
        str, typer.Argument(help="Video file, /dev/videoN, or an rtsp, tcp, udp or http address.", show_default=False)
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What to ask again and again.")] = None,
    every: Annotated[str, typer.Option("--every", help="Time of the stream between two questions: 5s, 1m.")] = "5s",
    alert: Annotated[str | None, typer.Option("--alert", help="Words in an answer that make it an alert.")] = None,
    fps: Annotated[float, typer.Option("--fps", help="Frames a second to read.")] = 1.0,
    keep: Annotated[
        str, typer.Option("--keep", help="What is forgotten: decay, restart, or restart:SECONDS:OVERLAP.")
    ] = "decay",
    speed: Annotated[
        float | None, typer.Option("--speed", help="Play a file so fast, dropping late frames (1: as a camera).")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt in front of the frames.")] = None,
    max_pixels: Annotated[int | None, typer.Option("--max-pixels", min=1, help="Of a frame (Qwen-VL).")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer.")] = 32,
    save_state: Annotated[Path | None, typer.Option("--save-state", help="Write the state at the end.")] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Watch a stream in constant memory; a JSON line for every answer, until the stream ends or Ctrl-C."""
    if save_state is not None and not save_state.absolute().parent.is_dir():
        raise InputError(f"--save-state {save_state}", got="no such folder", fix="make the folder first")
    if save_state is not None:
        check_file_target(save_state)
    if alert is not None and (prompt is None or not alert.strip()):
        raise InputError("--alert", got=repr(alert), expected="words of an answer to --prompt")
    with open_results() as results:
        from linmu.runtimes.session import load
        from linmu.system.units import seconds_of

        every_s = seconds_of(every, "--every")
        options: dict[str, Any] = {"fps": fps, "keep": keep, "speed": speed, "system": system, "max_pixels": max_pixels}
        options["background"] = False  # this thread reads: a file is asked at the same frames every time
        with load(bundle, backend=backend, threads=threads) as session, session.watch(source, **options) as watcher:
            try:
                _watch(watcher, results, prompt, every_s, alert, max_new_tokens)
            except KeyboardInterrupt:  # how a stream without an end is left
                ignore_further_stops()
                say(f"stopped after {watcher.counts.frames} frames")
            except LinmuError:
                _save(watcher, save_state)
                raise
            _save(watcher, save_state)


def _watch(
    watcher: Any, results: Results, prompt: str | None, every_s: float, alert: str | None, max_new_tokens: int
) -> None:
    for counts in watcher.moments(every_s):
        line = {
            "time": counts.seconds,
            "frames_read": counts.frames,
            "frames_dropped": counts.reader.dropped,
            "fps": round(counts.fps, 2),
            "state_bytes": counts.state_bytes,
            "restarts": counts.restarts,
            "reconnects": counts.reader.reconnects,
        }
        if prompt is not None:
            text = watcher.ask(prompt, max_new_tokens=max_new_tokens).text.strip()
            line |= {"answer": text, "alert": alert is not None and says(text, alert)}
        results.json(line)
        if results.gone:  # nobody reads
            return


def says(answer: str, words: str) -> bool:
    """Whether an answer holds these words, whole, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(words.strip())}(?!\w)", answer, re.IGNORECASE) is not None


def _save(watcher: Any, path: Path | None) -> None:
    if path is not None and watcher.counts.frames:
        watcher.save(path)
