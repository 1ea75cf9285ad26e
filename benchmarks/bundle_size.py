"""A bundle's bytes against what its integers and scales need: decoder weights, and the whole folder by kind of file.

The theory: integers at their bits, every scale a float16 number, whatever stayed float as it is stored.

    python benchmarks/bundle_size.py BUNDLE [BUNDLE ...]
"""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, say, table

from linmu.bundle import open_bundle
from linmu.decoder_file import DecoderFile, map_weights, plain_parts, read_decoder_file
from linmu.matrix_format import part


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


def measure(folder: Path) -> dict[str, Any]:
    """One bundle's row."""
    bundle, decoder = open_bundle(folder), read_decoder_file(folder)
    quantized, rest = theory_bytes(folder, decoder)
    stored = (folder / decoder.data).stat().st_size
    sizes = {name: entry.bytes for name, entry in bundle.manifest.files.items()}
    golden = sum(size for name, size in sizes.items() if name.startswith("golden/"))
    vision = sum(size for name, size in sizes.items() if name.startswith("vision"))
    return {
        "bundle": folder.name, "quant": bundle.manifest.precision["weights"], "weights_bytes": stored,
        "theory_bytes": quantized + rest, "ratio": stored / (quantized + rest), "vision_bytes": vision,
        "golden_bytes": golden, "other_bytes": sum(sizes.values()) - stored - vision - golden,
    }  # fmt: skip


def main() -> None:
    """Measure every bundle and print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    rows = [measure(folder) for folder in parser.parse_args().bundles]
    say(table(rows))
    finish({"benchmark": "bundle_size", "rows": rows})


if __name__ == "__main__":
    main()
