"""What bundles of well-known sizes take in every preset, as `linmu inspect STUDENT` forecasts it: a table for the docs.

Nothing is built or measured: bytes follow from the sizes. Towers are elements of the vision tower (and, where a real
student was counted, of its vectors); M-MATE settings are the defaults.
Run: python benchmarks/preset_table.py
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import finish, say, table  # noqa: E402
from linmu.config import converted_with  # noqa: E402
from linmu.system.units import size  # noqa: E402
from linmu.tools.decoder_sizes import DecoderSizes  # noqa: E402
from linmu.tools.inspect import inspect_folder  # noqa: E402
from linmu.tools.preset_memory import Decoder, PresetMemory, preset_memory  # noqa: E402

MMATE = converted_with({})
# layers, hidden, intermediate, heads, key/value heads, head size; vocabulary, tied, vision; elements of the tower
SHAPES = {
    "SmolLM2-135M": (Decoder(DecoderSizes(30, 576, 1536, 9, 3, 64), MMATE, 49152, True, False), 0),
    "0.5B (Qwen2.5-0.5B, small tower)": (
        Decoder(DecoderSizes(24, 896, 4864, 14, 2, 64), MMATE, 151936, True, True),
        69_179_136,
    ),
    "3B (Qwen2.5-VL-3B)": (
        Decoder(DecoderSizes(36, 2048, 11008, 16, 2, 128), MMATE, 151936, True, True),
        670_091_200,
    ),
    "8B (Qwen2.5-VL-7B)": (
        Decoder(DecoderSizes(28, 3584, 18944, 28, 4, 128), MMATE, 152064, False, True),
        678_000_000,
    ),
}


def rows() -> list[tuple[str, int, tuple[PresetMemory, ...]]]:
    """Model, bytes of the state, presets."""
    demo = inspect_folder(ROOT / "linmu" / "demo" / "student")
    found = [("demo", demo.state_bytes, demo.presets)]
    for name, (decoder, tower) in SHAPES.items():
        presets = preset_memory(decoder, decoder.parameters + tower)
        found.append((name, decoder.sizes.state_bytes(decoder.mmate), presets))
    return found


def main() -> None:
    """Print the table."""
    lines, document = [], []
    for name, state, presets in rows():
        for item in presets:
            lines.append(
                {
                    "model": name,
                    "state": size(state),
                    "target": item.target,
                    "quant": item.preset,
                    "weights": size(item.weight_bytes),
                    "running": size(item.running_bytes),
                    "build": size(item.build_peak_bytes) if item.build_peak_bytes else None,
                }
            )
            document.append({"model": name, "state_bytes": state, **asdict(item)})
    say(table(lines))
    finish({"rows": document})


if __name__ == "__main__":
    main()
