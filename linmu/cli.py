"""The command line: translates arguments, calls one typed function per command, and catches errors in one place."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from linmu import cli_device, cli_export, cli_training
from linmu.cli_output import open_results, progress_bar, require_modules, require_separate, say, show_view
from linmu.cli_process import drop_stdout, open_streams, stopped, system_error
from linmu.errors import CheckFailed, InputError, LinmuError
from linmu.files.atomic import check_file_target
from linmu.system.interrupts import stop_signals

INTERRUPTED = 130
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
    adapter: Annotated[Path | None, typer.Option("--adapter", help="LoRA adapter to merge into the teacher.")] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Replace every attention layer of a teacher's decoder by an M-MATE block and write the student."""
    from linmu.formats.model_files import read_model_folder

    mmate = mmate_config(settings or [])
    require_separate(teacher, out)
    require_modules("linmu convert", "convert", "torch", "transformers")
    read_model_folder(teacher)  # a wrong folder is reported before torch takes its seconds to load
    with open_results() as results, progress_bar("converting") as progress:
        from linmu.model.folders import convert_folder
        from linmu.tables import conversion_view

        report = convert_folder(
            teacher,
            out,
            mmate=mmate,
            overwrite=overwrite,
            progress=lambda *step: progress("layer", *step),
            dtype=dtype,
            adapter=adapter,
        )
        show_view(conversion_view(report))
        for note in report.notes:
            say(note)
        say(f"student written to {out}")
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
        require_modules("linmu verify --student", "convert", "torch", "transformers")
    with open_results() as results:
        from linmu.tools.verify import verify as verify_bundle

        report = verify_bundle(
            bundle,
            student=student,
            calibration=calibration,
            backends=tuple(backends or ()),
            steps=steps,
            report=report_file,
            progress=say,
        )
        results.report(report, json_output)
        if not report.ok:
            raise CheckFailed(f"{bundle} does not agree with its reference", fix="see the levels that failed above")


@app.command(epilog='Example: linmu run bundle --prompt "What is in this picture?" --image cat.png')
def run(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Option("--image", help="Image file; may be repeated.")] = None,
    video: Annotated[Path | None, typer.Option("--video", help="Video file.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt in front of the conversation.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=0, help="Tokens to generate (0: only read the prompt).")
    ] = 128,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="A text that ends the answer; repeatable.")] = None,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Control tokens in the prompt are control tokens, not text.")
    ] = False,
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
    with open_results() as results:
        from linmu.runtimes.sampling import Sampling
        from linmu.runtimes.session import load

        sampling = Sampling(temperature, top_p, seed)
        session = load(bundle, backend=backend, threads=threads)
        if load_state is not None:
            session.state.load(load_state)
        options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "sampling": sampling,
            "stop": stop,
            "system": system,
            "parse_special": parse_special,
        }
        pictures = list(images or [])
        if json_output:
            results.json(session.generate(prompt, pictures, video, **options))
        else:
            for piece in session.stream(prompt, pictures, video, **options):
                results.text(piece)
                if results.gone:  # nobody reads: what was generated is in the state
                    break
            else:
                results.text("\n")
                found = session.result("")
                say(
                    f"{found.prompt_tokens} prompt tokens, first token after {found.timings['ttft_ms']:.0f} ms, "
                    f"{found.timings['tokens_per_s']:.1f} tokens/s, state {session.state.nbytes / 2**20:.1f} MiB"
                )
        if session.notice:
            say(session.notice)
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
    with open_results() as results:
        from linmu.tools.bench import bench as bench_bundle

        report = bench_bundle(bundle, contexts=lengths, backend=backend, threads=threads, progress=say, plot=plot)
        results.report(report, json_output)


@app.command(epilog="Example: linmu inspect bundle --json")
def inspect(
    folder: Annotated[Path, typer.Argument(help="Bundle or student folder.", show_default=False)],
    json_output: JsonOption = False,
) -> None:
    """Show graphs, inputs and outputs, precisions, sizes, state bytes and a memory forecast."""
    from linmu.tables import inspection_view
    from linmu.tools.inspect import inspect_folder

    with open_results() as results:
        found = inspect_folder(folder)
        if json_output:
            results.json(found.to_json())
        else:
            results.view(inspection_view(found))


@app.command(epilog="Example: linmu doctor")
def doctor(json_output: JsonOption = False) -> None:
    """Show what is installed, what each target needs and how to install what is missing."""
    from linmu.tables import diagnosis_view
    from linmu.tools.doctor import diagnose

    with open_results() as results:
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
    if not debug:  # what Pillow thinks of somebody's metadata is not what was asked
        warnings.filterwarnings("ignore", module=r"PIL\b")
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
    except BaseException as error:  # the one place that catches everything: a user gets a line, not a stack
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's is no Exception
            raise
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


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
