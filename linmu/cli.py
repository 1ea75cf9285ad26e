"""The command line: translates arguments, calls one typed function per command, and catches errors in one place."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import Progress

from linmu import cli_device, cli_export, cli_training
from linmu.atomic import check_file_target
from linmu.cli_process import drop_stdout, open_streams, stopped, system_error
from linmu.errors import CheckFailed, InputError, LinmuError
from linmu.interrupts import stop_signals

INTERRUPTED = 130
PIPED_WIDTH = 120  # columns of a table that goes to a file or a pipe
# What transformers loads where ExecuTorch is installed, too: warnings about kernels for GPUs that nobody asked for.
TALKATIVE = ("torchao", "torch.utils._pytree")

app = typer.Typer(
    name="linmu",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder made by `linmu export`.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result of linmu.")]
BackendOption = Annotated[str, typer.Option("--backend", help="auto, or a backend the bundle names.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: the runtime's).")]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Ship linear-complexity vision-language models to the edge."""
    if version:
        from linmu import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


@app.command(epilog="Example: linmu convert ./SmolVLM-256M -o student --set text_window=64")
def convert(
    teacher: Annotated[Path, typer.Argument(help="Local Hugging Face model folder.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Student folder to write.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An M-MATE setting; may be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the student's weights (auto: the teacher's).")] = "auto",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Replace every attention layer of a teacher's decoder by an M-MATE block and write the student."""
    from linmu.model_files import read_model_folder

    mmate = mmate_config(settings or [])
    _require_separate(teacher, out)
    _require("linmu convert", "convert", "torch", "transformers")
    read_model_folder(teacher)  # a wrong folder is reported before torch takes its seconds to load
    with _results() as results, _progress("converting") as progress:
        from linmu.model.folders import convert_folder
        from linmu.tables import conversion_view

        report = convert_folder(
            teacher, out, mmate=mmate, overwrite=overwrite, progress=lambda *step: progress("layer", *step), dtype=dtype
        )
        _show(conversion_view(report))
        _say(f"student written to {out}")
        if json_output:
            results.json({"student": str(out), "report": report})


@app.command(epilog="Example: linmu verify bundle --student student --steps 200 --json")
def verify(
    bundle: BundleArgument,
    student: Annotated[Path | None, typer.Option("--student", help="Compare with this student (needs torch).")] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calib", help="With --student: the record of a quantized phone bundle.")
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help="A backend to check; may be repeated (default: all here).")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decode steps of the roll-out.")] = 64,
    report_file: Annotated[Path | None, typer.Option("--report", help="Also write an HTML report.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Check every backend available here against the reference: graphs, roll-out with states, greedy tokens."""
    if student is not None:
        _require("linmu verify --student", "convert", "torch", "transformers")
    with _results() as results:
        from linmu.verify import verify as verify_bundle

        report = verify_bundle(
            bundle, student=student, calibration=calibration, backends=tuple(backends or ()), steps=steps,
            report=report_file, progress=_say,
        )  # fmt: skip
        results.report(report, json_output)
        if not report.ok:
            raise CheckFailed(f"{bundle} does not agree with its reference", fix="see the levels that failed above")


@app.command(epilog='Example: linmu run bundle --prompt "What is in this picture?" --image cat.png')
def run(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Option("--image", help="Image file; may be repeated.")] = None,
    video: Annotated[Path | None, typer.Option("--video", help="Video file.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to generate.")] = 128,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    save_state: Annotated[Path | None, typer.Option("--save-state", help="Write the state afterwards.")] = None,
    load_state: Annotated[Path | None, typer.Option("--load-state", help="Continue from a saved state.")] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="0 = greedy; above, sample.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Sample from the likeliest tokens of this sum.")] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Makes sampling repeatable.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Answer a prompt, greedily unless told otherwise; tokens appear as they come."""
    if save_state is not None and not save_state.absolute().parent.is_dir():
        raise InputError(f"--save-state {save_state}", got="no such folder", fix="make the folder first")
    if save_state is not None:
        check_file_target(save_state)
    with _results() as results:
        from linmu.runtimes.sampling import Sampling
        from linmu.runtimes.session import load

        sampling = Sampling(temperature, top_p, seed)
        session = load(bundle, backend=backend, threads=threads)
        if load_state is not None:
            session.state.load(load_state)
        pictures = list(images or [])
        if json_output:
            results.json(session.generate(prompt, pictures, video, max_new_tokens=max_new_tokens, sampling=sampling))
        else:
            pieces = session.stream(prompt, pictures, video, max_new_tokens=max_new_tokens, sampling=sampling)
            for piece in pieces:
                results.text(piece)
                if results.gone:  # nobody reads: what was generated is in the state
                    break
            else:
                results.text("\n")
                found = session.result("")
                _say(
                    f"{found.prompt_tokens} prompt tokens, first token after {found.timings['ttft_ms']:.0f} ms, "
                    f"{found.timings['tokens_per_s']:.1f} tokens/s, state {session.state.nbytes / 2**20:.1f} MiB"
                )
        if session.notice:
            _say(session.notice)
        if save_state is not None:
            session.state.save(save_state)


@app.command(epilog="Example: linmu bench bundle --contexts 512,2048,8192 --threads 2 --json")
def bench(
    bundle: BundleArgument,
    contexts: Annotated[str, typer.Option("--contexts", help="Context lengths in tokens.")] = "512,2048,8192",
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Also draw a picture (.png, .svg, .pdf).")] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure time to first token, tokens per second, peak memory and state bytes against context length."""
    lengths = context_lengths(contexts)
    with _results() as results:
        from linmu.bench import bench as bench_bundle

        report = bench_bundle(bundle, contexts=lengths, backend=backend, threads=threads, progress=_say, plot=plot)
        results.report(report, json_output)


@app.command(epilog="Example: linmu inspect bundle --json")
def inspect(
    folder: Annotated[Path, typer.Argument(help="Bundle or student folder.", show_default=False)],
    json_output: JsonOption = False,
) -> None:
    """Show graphs, inputs and outputs, precisions, sizes, state bytes and a memory forecast."""
    from linmu.inspect import inspect_folder
    from linmu.tables import inspection_view

    with _results() as results:
        found = inspect_folder(folder)
        if json_output:
            results.json(found.to_json())
        else:
            results.view(inspection_view(found))


@app.command(epilog="Example: linmu doctor")
def doctor(json_output: JsonOption = False) -> None:
    """Show what is installed, what each target needs and how to install what is missing."""
    from linmu.doctor import diagnose
    from linmu.tables import diagnosis_view

    with _results() as results:
        found = diagnose()
        if json_output:
            results.json(found.to_json())
        else:
            results.view(diagnosis_view(found))
        if not found.ok:
            raise CheckFailed("the base install is broken", fix="pip install --force-reinstall linmu")


cli_device.register(app)
cli_export.register(app)
cli_training.register(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 check failed, 2 bad input, 3 missing component, 130.

    SIGTERM and SIGHUP clean up as Ctrl-C does: 143 and 129. A reader of stdout that goes away changes nothing.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING if debug else logging.ERROR)
    open_streams()
    with stop_signals():
        return _main(arguments, debug)


def _main(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, prog_name="linmu", standalone_mode=False)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            drop_stdout()
        if code == INTERRUPTED:  # typer's form of KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except LinmuError as error:
        return _fail(str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(*stopped(), debug)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} fix: see linmu --help", 2, debug)
    except Exception as error:  # the one place that catches everything: a user gets a line, not a stack
        if (known := system_error(error)) is not None:
            return _fail(str(known), known.exit_code, debug)
        hint = "" if debug else "; run with --debug for the traceback"
        return _fail(f"{type(error).__name__}: {error}{hint}", 1, debug)


def mmate_config(settings: list[str]) -> Any:
    """An MMateConfig from NAME=VALUE texts; raises InputError on an unknown name or a value of the wrong type."""
    from linmu.config import MMateConfig

    defaults = {item.name: item.default for item in fields(MMateConfig)}
    values: dict[str, Any] = {}
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError("--set", got=repr(text), expected="NAME=VALUE, for example text_window=64")
        values[name] = _parse(name, value, defaults.get(name))
    return MMateConfig.from_json(values)


def context_lengths(text: str) -> tuple[int, ...]:
    """Comma-separated token counts; raises InputError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError("--contexts", got=repr(text), expected="token counts, for example 512,2048")
    return tuple(int(part) for part in parts)


def _parse(name: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise InputError(f"--set {name}", got=repr(value), expected="true or false")
        return value.lower() == "true"
    try:
        return type(default)(value) if isinstance(default, int | float) else value
    except ValueError as error:
        raise InputError(f"--set {name}", got=repr(value), expected=f"a number like {default}") from error


def _require(command: str, extra: str, *modules: str) -> None:
    from linmu.doctor import require

    for module in modules:
        require(module, needed_for=f"`{command}`", extra=extra)


def _require_separate(source: Path, out: Path) -> None:
    source, out = source.resolve(), out.resolve()
    if out == source or out in source.parents or source in out.parents:
        raise InputError(f"cannot write to {out}", got=f"input {source}", expected="two folders, neither in the other")


class _Results:
    """What goes to the real stdout while everything else that is printed goes to stderr."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.gone = False  # whether nobody reads any more

    def text(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self.gone = True
            drop_stdout()

    def json(self, value: Any) -> None:
        unicode = (getattr(self._stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
        self.text(json.dumps(plain(value), ensure_ascii=not unicode, allow_nan=False) + "\n")

    def view(self, view: RenderableType) -> None:
        console = Console(file=self._stream)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = PIPED_WIDTH  # rich's 80 would cut tables in files and pipes
        with console.capture() as shown:
            console.print(view)
        self.text(shown.get())

    def report(self, report: Any, json_output: bool) -> None:
        self.json(report.to_json()) if json_output else self.text(report.to_text().rstrip("\n") + "\n")


def plain(value: Any) -> Any:
    """A value as JSON knows it: dataclasses and paths unpacked, NaN and infinities as null."""
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars
        return plain(value.tolist())
    if isinstance(value, float) and not isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


@contextmanager
def _results() -> Iterator[_Results]:
    """Keep stdout for results: libraries that print there (torch.onnx does) are sent to stderr meanwhile."""
    results = _Results(sys.stdout)
    with redirect_stdout(sys.stderr):
        yield results


@contextmanager
def _progress(title: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, moved by progress(text) or progress(text, done, total)."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def show(text: str, done: int = 0, total: int | None = None) -> None:
            bar.update(task, description=f"{title}: {text}", completed=done, total=total)

        yield show


def _show(view: RenderableType) -> None:
    Console(stderr=True, highlight=False).print(view)


def _say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, markup=False)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
