"""`linmu doctor`: what is installed and what is missing."""

from __future__ import annotations

from linmu.commands.options import JsonOption
from linmu.commands.output import open_results
from linmu.errors import CheckFailed

EXAMPLES = "Example: linmu doctor"


def command(json_output: JsonOption = False) -> None:
    """Show what is installed, what each target needs and how to install what is missing."""
    from linmu.commands.tables import diagnosis_view
    from linmu.tools.doctor import diagnose

    with open_results() as results:
        diagnosis = diagnose()
        if json_output:
            results.json(diagnosis.to_json())
        else:
            results.view(diagnosis_view(diagnosis))
        if not diagnosis.ok:
            raise CheckFailed("the base install is broken", fix="pip install --force-reinstall linmu")
