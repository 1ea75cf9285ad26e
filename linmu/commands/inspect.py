"""`linmu inspect`: what a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from linmu.commands.options import JsonOption
from linmu.commands.output import open_results

EXAMPLES = "Example: linmu inspect bundle --json"


def command(
    folder: Annotated[Path, typer.Argument(help="Bundle or student folder.", show_default=False)],
    json_output: JsonOption = False,
) -> None:
    """Show graphs, inputs and outputs, precisions, sizes, state bytes and a memory forecast."""
    from linmu.commands.tables import inspection_view
    from linmu.tools.inspect import inspect_folder

    with open_results() as results:
        inspection = inspect_folder(folder)
        if json_output:
            results.json(inspection.to_json())
        else:
            results.view(inspection_view(inspection))
