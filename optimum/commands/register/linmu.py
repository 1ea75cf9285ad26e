"""`optimum-cli export linmu MODEL OUTPUT`: optimum finds this file in its namespace package (PEP 420)."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class LinmuExportCommand(BaseOptimumCLICommand):
    """Convert a model, unless it is a student already, and export it as a linmu bundle."""

    COMMAND = CommandInfo(name="linmu", help="Convert to linear complexity and export a linmu bundle.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments; they mean what they mean to `linmu export`."""
        parser.add_argument("model", help="Local Hugging Face model folder, or a student made by `linmu convert`.")
        parser.add_argument("output", help="Bundle folder to write.")
        parser.add_argument("--target", default="onnx", help="onnx, jetson, android or ios.")
        parser.add_argument("--quant", default=None, help="Precision preset of the target.")
        parser.add_argument("--overwrite", action="store_true", help="Replace an earlier bundle.")

    def run(self) -> None:
        """Run linmu's own commands and leave with their exit code."""
        from linmu.cli import main

        model, output = Path(self.args.model), Path(self.args.output)
        options = ["-o", str(output), "--target", self.args.target]
        options += ["--quant", self.args.quant] if self.args.quant else []
        options += ["--overwrite"] if self.args.overwrite else []
        if _is_student(model):
            sys.exit(main(["export", str(model), *options]))
        with TemporaryDirectory(prefix="linmu-") as folder:
            student = str(Path(folder) / "student")
            sys.exit(main(["convert", str(model), "-o", student]) or main(["export", student, *options]))


def _is_student(model: Path) -> bool:
    from linmu.errors import LinmuError
    from linmu.formats.model_files import is_student, read_config

    try:
        return is_student(read_config(model))
    except LinmuError:
        return False  # `linmu convert` says what is wrong with it


REGISTER_COMMANDS = [(LinmuExportCommand, ExportCommand)]
