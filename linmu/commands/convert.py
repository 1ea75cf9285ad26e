"""`linmu convert`: a teacher's folder in, a student's out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from linmu.commands.options import JsonOption, OverwriteOption
from linmu.commands.output import open_results, progress_bar, require_modules, say, show_view
from linmu.errors import InputError
from linmu.files.separate import require_separate

EXAMPLES = "Example: linmu convert ./SmolVLM-256M -o student --set text_window=64 --probe my-data"


def command(
    teacher: Annotated[Path, typer.Argument(help="Local Hugging Face model folder.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Student folder to write.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="An M-MATE setting; may be repeated.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the student's weights (auto: the teacher's).")] = "auto",
    adapter: Annotated[Path | None, typer.Option("--adapter", help="LoRA adapter to merge into the teacher.")] = None,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", help="Data folder to measure on.", show_default="built-in prompts"),
    ] = None,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
) -> None:
    """Replace every attention layer of a teacher's decoder by an M-MATE block and write the student."""
    from linmu.files.atomic import require_free_folder
    from linmu.formats.model_files import read_model_folder

    mmate = mmate_config(settings or [])
    # Wrong folders are reported before torch takes its seconds to load.
    require_separate(out, teacher, *([] if probe is None else [probe]))
    require_free_folder(out, overwrite)
    require_modules("linmu convert", "convert", "torch", "transformers")
    read_model_folder(teacher)
    with open_results() as results, progress_bar("converting") as progress:
        from linmu.commands.tables import conversion_view
        from linmu.conversion.folder import convert_folder

        report = convert_folder(
            teacher,
            out,
            mmate=mmate,
            overwrite=overwrite,
            progress=lambda *step: progress("probe", *step),
            dtype=dtype,
            adapter=adapter,
            probe=probe,
        )
        show_view(conversion_view(report))
        for note in report.notes:
            say(note)
        say(f"student written to {out}")
        if json_output:
            results.json({"student": str(out), "report": report})


def mmate_config(settings: list[str]) -> Any:
    """What NAME=VALUE texts change in `convert`'s settings; raises InputError on an unknown name or a wrong value."""
    from linmu.config import MMateConfig, converted_with

    defaults = {item.name: item.default for item in fields(MMateConfig)}
    values: dict[str, Any] = {}
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise InputError("--set", got=repr(text), expected="NAME=VALUE, for example text_window=64")
        values[name] = _parse(name, value, defaults.get(name))
    return converted_with(values)


def _parse(name: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise InputError(f"--set {name}", got=repr(value), expected="true or false")
        return value.lower() == "true"
    try:
        return type(default)(value) if isinstance(default, int | float) else value
    except ValueError as error:
        raise InputError(f"--set {name}", got=repr(value), expected=f"a number like {default}") from error
