"""Seeded ways to spoil the files of a bundle, a state or a calibration record, as a stranger could.

Every mutation takes a folder (of hard links to the files of a good one: nothing is changed in place) and a random
generator, and says in a few words what it did.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

NUMBERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    255,
    4096,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    2**64,
    -(2**63),
    10**30,
    0.5,
    -0.0,
    1e-30,
    1e30,
    1e308,
)
NAMES = (
    "",
    ".",
    "..",
    "../outside.data",
    "../../outside.data",
    "/etc/hostname",
    "/dev/zero",
    "engines/x.data",
    "a\0b",
    "\ud800",
    "x" * 5000,
    "weights.data",
    "manifest.json",
    "file:///etc/hostname",
    "{{ 7 }}",
)
VALUES = (*NUMBERS, *NAMES, None, True, False, [], {}, [[]], {"a": 1}, [1, 2, 3], "float32", "int64", "object")
TEXTS = ("NaN", "Infinity", "-Infinity", "1e999", "[" * 5000, "0" * 40, '"\\ud800"', "9" * 5000)
OPERATORS = (
    "Loop",
    "Scan",
    "If",
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Range",
    "Div",
    "Mod",
    "Concat",
    "Resize",
    "OneHot",
    "SequenceAt",
    "Gather",
    "MatMul",
    "Reshape",
    "Cast",
    "Slice",
    "TfIdfVectorizer",
)

Mutation = Callable[[Path, random.Random], str]


def write(path: Path, content: bytes) -> None:
    """Replace a file without touching what it was linked to."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """Paths of all values inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in [(*place, key), *places(item, (*place, key))]]


def spoil_json(document: Any, dice: random.Random) -> tuple[str, str]:
    """(the text of a document with one thing changed, what was changed)."""
    place = dice.choice(places(document))
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    key, kind, where = place[-1], dice.randrange(8), ".".join(map(str, place))[:60]
    if kind == 0:
        del parent[key]
        return json.dumps(document), f"{where} removed"
    if kind == 1:
        mark = "\0mark\0"
        parent[key], text = mark, dice.choice(TEXTS)
        return json.dumps(document).replace(json.dumps(mark), text, 1), f"{where} = {text[:20]}"
    if kind == 2 and isinstance(parent, dict):
        pair = f"{json.dumps(key)}: {json.dumps(parent[key])}"
        return json.dumps(document).replace(pair, f"{pair}, {pair}", 1), f"{where} twice"
    if kind == 3 and isinstance(parent, list):
        parent += [parent[key]] * dice.choice((1, 1000))
        return json.dumps(document), f"{where} repeated"
    if kind == 4 and isinstance(parent, dict):
        parent[dice.choice(("new", *map(str, parent)))] = dice.choice(VALUES)
        return json.dumps(document), f"{where} beside"
    old = parent[key]
    if type(old) in (int, float) and kind in (5, 6):
        parent[key] = dice.choice((old + 1, old - 1, -old, old * 2, old * 1000, old // 2 if old else 1))
    else:
        parent[key] = dice.choice(VALUES)
    return json.dumps(document), f"{where} = {str(parent[key])[:40]!a}"


def json_file(name: str) -> Mutation:
    """One value of a JSON file."""

    def change(folder: Path, dice: random.Random) -> str:
        text, what = spoil_json(json.loads((folder / name).read_text()), dice)
        write(folder / name, text.encode("utf-8", "surrogatepass"))
        return f"{name}: {what}"

    return change


def bytes_of(name: str) -> Mutation:
    """A few bytes of any file: flipped, cut off, or put in."""

    def change(folder: Path, dice: random.Random) -> str:
        raw = bytearray((folder / name).read_bytes())
        kind = dice.randrange(4)
        place = dice.randrange(max(min(len(raw), dice.choice((64, 4096, len(raw)))), 1))
        if kind == 0:
            del raw[place:]
        elif kind == 1:
            raw[place:place] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 8, 100))))
        else:
            for _ in range(dice.choice((1, 1, 8))):
                raw[dice.randrange(len(raw)) if kind == 3 else place] ^= 1 << dice.randrange(8)
        write(folder / name, bytes(raw))
        return f"{name}: bytes at {place}"

    return change


def kind_of(name: str, outside: bool = True) -> Mutation:
    """Something else than a file under its name; `outside`: also a link to a file outside."""
    kinds = ("fifo", "folder", "zero", "nothing", "loop") + ("outside",) * outside

    def change(folder: Path, dice: random.Random) -> str:
        path, kind = folder / name, dice.choice(kinds)
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind != "nothing":
            path.symlink_to({"zero": "/dev/zero", "outside": "../outside.data", "loop": path.name}[kind])
        return f"{name}: {kind}"

    return change


def graph(name: str) -> Mutation:
    """One thing in an ONNX graph: an operator, an attribute, a constant, a place outside, new nodes."""

    def change(folder: Path, dice: random.Random) -> str:
        model = onnx.load(folder / name, load_external_data=False)
        ways = (_operator, _attribute, _constant, _outside, _sizes, _wires, _folded, _loop)
        what = dice.choice(ways)(model.graph, dice)
        write(folder / name, model.SerializeToString())
        return f"{name}: {what}"

    return change


def _operator(graph: onnx.GraphProto, dice: random.Random) -> str:
    node = dice.choice(graph.node)
    old, node.op_type = node.op_type, dice.choice(OPERATORS)
    node.domain = dice.choice(("", node.domain, "com.microsoft", "ai.onnx.ml", "other"))
    return f"{old} -> {node.op_type}"


def _attribute(graph: onnx.GraphProto, dice: random.Random) -> str:
    nodes = [node for node in graph.node if node.attribute]
    node = dice.choice(nodes)
    attribute = dice.choice(node.attribute)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = int(min(max(dice.choice(NUMBERS), -(2**63)), 2**63 - 1))
    elif attribute.type == onnx.AttributeProto.INTS:
        attribute.ints[:] = [dice.choice((-1, 0, 3, 2**31, 2**40))] * dice.choice((1, len(attribute.ints), 50))
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = float("nan") if dice.random() < 0.3 else 1e30
    else:
        node.attribute.remove(attribute)
    return f"{attribute.name} of {node.op_type}"


def _constant(graph: onnx.GraphProto, dice: random.Random) -> str:
    inline = [tensor for tensor in graph.initializer if tensor.raw_data and tensor.data_type == TensorProto.INT64]
    if not inline:
        return "nothing"
    tensor = dice.choice(inline)
    values = onnx.numpy_helper.to_array(tensor).reshape(-1).copy()
    values[dice.randrange(len(values))] = min(max(int(dice.choice(NUMBERS)), -(2**63)), 2**63 - 1)
    tensor.raw_data = values.tobytes()
    return f"constant {tensor.name} = {values[:5].tolist()}"


def _outside(graph: onnx.GraphProto, dice: random.Random) -> str:
    outside = [tensor for tensor in graph.initializer if tensor.external_data]
    if not outside:
        return "nothing"
    entry = dice.choice(dice.choice(outside).external_data)
    entry.value = dice.choice(NAMES) if entry.key == "location" else str(dice.choice(NUMBERS))
    entry.value = entry.value.encode("utf-8", "replace").decode()
    return f"{entry.key} = {entry.value[:30]!a}"


def _sizes(graph: onnx.GraphProto, dice: random.Random) -> str:
    tensor = dice.choice(graph.initializer)
    if not tensor.dims:
        tensor.data_type = dice.choice((0, 1, 7, 8, 11, 14, 20, 99))
        return f"type of {tensor.name}"
    tensor.dims[dice.randrange(len(tensor.dims))] = int(dice.choice((-1, 0, 1, 3, 2**31, 2**40, 2**62)))
    return f"sizes of {tensor.name}: {list(tensor.dims)}"


def _wires(graph: onnx.GraphProto, dice: random.Random) -> str:
    node, other = dice.choice(graph.node), dice.choice(graph.node)
    if node.input and other.output:
        node.input[dice.randrange(len(node.input))] = dice.choice(other.output)
    return f"an input of {node.op_type} from {other.op_type}"


def _folded(graph: onnx.GraphProto, dice: random.Random) -> str:
    """Nodes that a runtime computes while it opens the graph."""
    big = dice.choice((2**20, 2**31, 2**40))
    values = {"n": [big, big], "one": [1], "minus": [-1], "least": [-(2**63)], "zero": [0]}
    graph.initializer.extend(helper.make_tensor(f"z.{k}", TensorProto.INT64, [len(v)], v) for k, v in values.items())
    kind = dice.choice(("least / -1", "1 / 0", "fill", "expand", "tile", "range", "double", "fill of shape"))
    made = {
        "least / -1": [("Div", ["z.least", "z.minus"])],
        "1 / 0": [(dice.choice(("Div", "Mod")), ["z.one", "z.zero"])],
        "fill": [("ConstantOfShape", ["z.n"])],
        "expand": [("Expand", ["z.one", "z.n"])],
        "tile": [("Unsqueeze", ["z.one", "z.zero"]), ("Tile", ["z.0", "z.n"])],
        "range": [("Squeeze", [f"z.{x}"]) for x in ("zero", "least", "minus")] + [("Range", ["z.0", "z.1", "z.2"])],
        "double": [("Concat", ["z.n", "z.n"])] + [("Concat", [f"z.{i}", f"z.{i}"]) for i in range(40)],
        "fill of shape": [("Shape", [graph.input[0].name]), ("Mul", ["z.0", "z.n"]), ("ConstantOfShape", ["z.1"])],
    }[kind]
    for number, (operator, inputs) in enumerate(made):
        more = {"axis": 0} if operator == "Concat" else {}
        graph.node.append(helper.make_node(operator, inputs, [f"z.{number}"], **more))
    graph.node.append(helper.make_node("Identity", [f"z.{len(made) - 1}"], ["z.end"]))
    return kind


def _loop(graph: onnx.GraphProto, dice: random.Random) -> str:
    """A loop without an end in front of an output."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("d", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )
    graph.initializer.append(helper.make_tensor("l.times", TensorProto.INT64, [], [2**62]))
    graph.initializer.append(helper.make_tensor("l.go", TensorProto.BOOL, [], [True]))
    target = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["l.before" if name == target else name for name in node.output]
    if dice.random() < 0.3:
        inner = helper.make_graph(
            [helper.make_node("Loop", ["l.times", "l.go", "l.before"], ["w"], body=body)],
            "then",
            [],
            [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
        )
        graph.node.append(helper.make_node("If", ["l.go"], [target], then_branch=inner, else_branch=inner))
        return "Loop in If"
    graph.node.append(helper.make_node("Loop", ["l.times", "l.go", "l.before"], [target], body=body))
    return "Loop"


def tensors(name: str) -> Mutation:
    """The header of a safetensors file: one value of it, its metadata too."""

    def change(folder: Path, dice: random.Random) -> str:
        raw = (folder / name).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        text, what = spoil_json(json.loads(raw[8 : 8 + length]), dice)
        header = text.encode("utf-8", "surrogatepass")
        length = dice.choice((len(header),) * 9 + (2**62,))
        write(folder / name, length.to_bytes(8, "little") + header + raw[8 + int.from_bytes(raw[:8], "little") :])
        return f"{name}: {what}"

    return change


def values_of(name: str) -> Mutation:
    """Numbers of a safetensors file."""

    def change(folder: Path, dice: random.Random) -> str:
        raw = bytearray((folder / name).read_bytes())
        start = 8 + int.from_bytes(raw[:8], "little")
        place = dice.randrange(start, len(raw))
        new = dice.choice((b"\0\0\xc0\x7f", b"\0\0\x80\xff", bytes([raw[place] ^ 64]), b"\xff" * 8, b"\0" * 8))
        raw[place : place + len(new)] = new[: len(raw) - place]
        write(folder / name, bytes(raw))
        return f"{name}: numbers at {place}"

    return change


def repair(folder: Path) -> None:
    """Make every hash right again, as far as what is left of the manifest has a place for it."""
    from linmu.formats.manifest import OWN_HASH, own_hash

    if (folder / "manifest.json").is_symlink() or not (folder / "manifest.json").is_file():
        return
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.is_file() and path.stat().st_size < 1 << 30:
                entry |= {"sha256": sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        manifest[OWN_HASH] = own_hash(manifest)
        write(folder / "manifest.json", json.dumps(manifest).encode())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # damaged beyond that
