"""Ways to break a bundle whose manifest and hashes still look right: what verify must find."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from linmu.formats.bundle import write_manifest
from linmu.formats.decoder_file import read_decoder_file
from linmu.formats.manifest import Manifest


def copy_of(bundle: Path, target: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(bundle, target))


def rehash(folder: Path, **changes: object) -> None:
    """Write the manifest anew, with the hashes of the files as they are now; `changes` go into manifest.model."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    data["model"] |= changes
    write_manifest(folder, Manifest.from_json(data))


def weight_byte(folder: Path, name: str) -> None:
    """Flip one bit in the exponent of one weight."""
    entry = read_decoder_file(folder).weights[name]
    size = np.dtype(entry.dtype).itemsize
    place = entry.offset + (int(np.prod(entry.shape)) // 2 + 1) * size - 1  # a weight's last byte: sign and exponent
    raw = bytearray((folder / "weights.data").read_bytes())
    raw[place] ^= 1
    (folder / "weights.data").write_bytes(raw)


def weight_nudge(folder: Path, name: str, amount: float) -> None:
    """Add a small number to a float32 weight."""
    entry = read_decoder_file(folder).weights[name]
    raw, end = bytearray((folder / "weights.data").read_bytes()), entry.offset + 4 * int(np.prod(entry.shape))
    moved = np.frombuffer(bytes(raw[entry.offset : end]), np.float32) + np.float32(amount)
    raw[entry.offset : end] = moved.tobytes()
    (folder / "weights.data").write_bytes(raw)


def weight_nan(folder: Path, name: str) -> None:
    """One weight becomes NaN."""
    entry = read_decoder_file(folder).weights[name]
    raw = bytearray((folder / "weights.data").read_bytes())
    raw[entry.offset : entry.offset + 4] = np.float32(np.nan).tobytes()
    (folder / "weights.data").write_bytes(raw)


def vision_byte(folder: Path) -> None:
    """Change a few weights of the vision tower."""
    raw = bytearray((folder / "vision.data").read_bytes())
    for place in range(3, 403, 4):
        raw[place] ^= 1
    (folder / "vision.data").write_bytes(raw)


def _edit(folder: Path, graph: str, change) -> None:
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    change(model.graph)
    (folder / f"{graph}.onnx").write_bytes(model.SerializeToString())


def _producer(graph, name: str):
    return next((node, i) for node in graph.node for i, output in enumerate(node.output) if output == name)


def swapped_states(folder: Path, graph: str, first: str, second: str) -> None:
    """Two states of one shape change places: each output is computed where the other one was."""

    def change(g) -> None:
        (a, i), (b, j) = _producer(g, first), _producer(g, second)
        a.output[i], b.output[j] = second, first

    _edit(folder, graph, change)


def transposed_state(folder: Path, graph: str, name: str) -> None:
    """A recurrent state comes out with key and value dimensions exchanged."""

    def change(g) -> None:
        node, i = _producer(g, name)
        node.output[i] = name + ".straight"
        place = list(g.node).index(node)
        g.node.insert(place + 1, helper.make_node("Transpose", [name + ".straight"], [name], perm=[0, 1, 3, 2]))

    _edit(folder, graph, change)


def output_order(folder: Path, graph: str) -> None:
    """The graph lists two of its outputs the other way round."""

    def change(g) -> None:
        outputs = list(g.output)
        outputs[1], outputs[3] = outputs[3], outputs[1]
        del g.output[:]
        g.output.extend(outputs)

    _edit(folder, graph, change)


def rotary_off_by_one(folder: Path) -> None:
    """The step graph rotates by one position too many."""

    def change(g) -> None:
        for node in g.node:
            for i, name in enumerate(node.input):
                if name == "position_ids":
                    node.input[i] = "position_ids.late"
        g.initializer.append(helper.make_tensor("one.late", TensorProto.INT64, [], [1]))
        g.node.insert(0, helper.make_node("Add", ["position_ids", "one.late"], ["position_ids.late"]))

    _edit(folder, "step", change)


def processor_setting(folder: Path, name: str, value: object) -> None:
    """Another setting of image preprocessing."""
    path = folder / "processor.json"
    data = json.loads(path.read_text())
    assert data["image"][name] != value
    data["image"][name] = value
    path.write_text(json.dumps(data))
