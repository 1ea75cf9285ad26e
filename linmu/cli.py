"""The command line: joins the commands of linmu/commands, and catches errors in one place."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from typing import Annotated

import typer

from linmu.commands import (
    bench,
    build,
    calibrate,
    convert,
    distill,
    doctor,
    eval,
    export,
    inspect,
    run,
    serve,
    verify,
    watch,
)
from linmu.commands.process import drop_stdout, open_streams, stopped, system_error
from linmu.errors import LinmuError
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

# In the order in which a model goes through them.
COMMANDS = {
    "convert": convert,
    "distill": distill,
    "eval": eval,
    "calibrate": calibrate,
    "export": export,
    "build": build,
    "verify": verify,
    "run": run,
    "watch": watch,
    "serve": serve,
    "bench": bench,
    "inspect": inspect,
    "doctor": doctor,
}
for _name, _module in COMMANDS.items():
    app.command(_name, epilog=_module.EXAMPLES)(_module.command)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Ship linear-complexity vision-language models to the edge."""
    if version:
        from linmu.version import __version__

        print(__version__)
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 check failed, 2 bad input, 3 missing component, 130.

    SIGTERM and SIGHUP clean up as Ctrl-C does: 143 and 129. A reader of stdout that goes away changes nothing.
    OpenMP's threads wait without spinning: roll-outs are small operations, and a thread that spins on a core which
    another process uses delays both.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING if debug else logging.ERROR)
    if not debug:  # what Pillow thinks of somebody's metadata is not what was asked
        warnings.filterwarnings("ignore", module=r"PIL\b")
    if arguments[:1] != ["distill"]:  # whose large products gain by spinning, where nobody else wants the cores
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
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


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
