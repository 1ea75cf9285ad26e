"""A bundle's bytes against what its integers and scales need: decoder weights, and the whole folder by kind of file.

The theory: integers at their bits, every scale a float16 number, whatever stayed float as it is stored. A phone's
bundle is one program: its theory is that of the decoder and of the vision tower, and needs the student (and the record
of a quantized one), because a program cannot be read back.

    python benchmarks/bundle_size.py BUNDLE [BUNDLE ...] [--student STUDENT [--calib RECORD]]
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, say, table

from linmu.calibration.record import record_of
from linmu.export.phone.bundle import PROGRAM
from linmu.formats.bundle import Bundle, open_bundle
from linmu.formats.decoder_file import DECODER_FILE, DecoderFile, map_weights, plain_parts, read_decoder_file
from linmu.formats.matrix_format import part
from linmu.formats.presets import find_preset
from linmu.model.folders import load_student
from linmu.quantize.form import preset_form
from linmu.reference.vision import build_vision
from linmu.step.pack import decoder_form


def theory_bytes(folder: Path, decoder: DecoderFile) -> tuple[int, int]:
    """(bytes of quantized matrices, bytes of the rest) that the decoder's weights need."""
    values = plain_parts(map_weights(folder, decoder), decoder)
    quantized, parts = 0, set()
    for name in decoder.packing:
        format = decoder.format(name)
        assert format is not None
        rows, columns = values[part(name, "q")].shape
        quantized += format.stored_bytes(rows, columns)
        parts |= {part(name, kind) for kind in ("q", "scale", "input_scale")}
    rest = [entry for name, entry in decoder.weights.items() if name not in parts]
    return quantized, sum(prod(entry.shape) * np.dtype(entry.dtype).itemsize for entry in rest)


def program_theory_bytes(bundle: Bundle, student: Path, record: Path | None) -> int:
    """Bytes that the weights of a phone's program need: the decoder's and the vision tower's (float32)."""
    model, precision = load_student(student), bundle.manifest.precision
    form = decoder_form(model)
    tower = build_vision(model, form.family.name).parameters() if form.vision else ()
    if record is not None:
        known = record_of(record, bundle.manifest.model.weights_hash)
        form = preset_form(form, known, find_preset(bundle.manifest.target, precision.weights)).form
    needed = 4 * sum(parameter.numel() for parameter in tower)
    for name, thunk in form.weights.items():
        matrix, _, kind = name.rpartition(".")
        if matrix in form.quantized and kind in ("q", "scale"):
            needed += form.quantized[matrix].stored_bytes(*thunk().shape) if kind == "q" else 0
        else:
            needed += 4 * thunk().numel()
    return needed


def measure(folder: Path, student: Path | None, record: Path | None) -> dict[str, Any]:
    """One bundle's row."""
    bundle = open_bundle(folder)
    if not (folder / DECODER_FILE).is_file():
        if student is None:
            raise SystemExit(f"{folder} is one program: give --student, and --calib if it is quantized")
        stored, theory = (folder / PROGRAM).stat().st_size, program_theory_bytes(bundle, student, record)
        return {
            "bundle": folder.name,
            "quant": bundle.manifest.precision.weights,
            "weights_bytes": stored,
            "theory_bytes": theory,
            "ratio": stored / theory,
        }
    decoder = read_decoder_file(folder)
    quantized, rest = theory_bytes(folder, decoder)
    stored = (folder / decoder.data).stat().st_size
    sizes = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    golden = sum(size for name, size in sizes.items() if name.startswith("golden/"))
    vision = sum(size for name, size in sizes.items() if name.startswith("vision"))
    return {
        "bundle": folder.name,
        "quant": bundle.manifest.precision.weights,
        "weights_bytes": stored,
        "theory_bytes": quantized + rest,
        "ratio": stored / (quantized + rest),
        "vision_bytes": vision,
        "golden_bytes": golden,
        "other_bytes": sum(sizes.values()) - stored - vision - golden,
    }


def main() -> None:
    """Measure every bundle and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--student", type=Path, help="of phones' bundles")
    parser.add_argument("--calib", type=Path, metavar="RECORD", help="of quantized phones' bundles")
    given = parser.parse_args()
    rows = [measure(folder, given.student, given.calib) for folder in given.bundles]
    say(table(rows))
    finish({"benchmark": "bundle_size", "rows": rows})


if __name__ == "__main__":
    main()
