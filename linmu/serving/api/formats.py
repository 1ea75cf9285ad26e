"""`response_format`: what an answer is held to while it is generated."""

from __future__ import annotations

from collections.abc import Callable

from linmu.errors import InputError, LinmuError
from linmu.processing import Processor
from linmu.runtimes.constraints import Constraint
from linmu.serving.api.errors import of_linmu
from linmu.serving.api.requests import JsonObjectFormat, JsonSchemaFormat, TextFormat
from linmu.serving.schema import Grammars

Format = TextFormat | JsonObjectFormat | JsonSchemaFormat


class Formats:
    """Makes constraints for one model; llguidance is asked for when the first answer needs it."""

    def __init__(self, processor: Processor):
        self._processor = processor
        self._grammars: Grammars | None = None

    def maker(self, wanted: Format | None) -> Callable[[], Constraint] | None:
        """What makes one answer's constraint, in a worker thread; None for any text."""
        if wanted is None or isinstance(wanted, TextFormat):
            return None

        def make() -> Constraint:
            try:
                return self._made(wanted)
            except LinmuError as error:
                raise of_linmu(error, "response_format") from error

        return make

    def _made(self, wanted: JsonObjectFormat | JsonSchemaFormat) -> Constraint:
        if self._grammars is None:
            self._grammars = Grammars(self._processor)
        if isinstance(wanted, JsonObjectFormat):
            return self._grammars.json_object()
        try:
            return self._grammars.json_schema(wanted.json_schema.json_schema)
        except InputError as error:
            raise of_linmu(error, "response_format.json_schema.schema") from error
