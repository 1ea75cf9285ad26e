from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "linmu"
FOLDERS = ("linmu", "tests", "examples", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# The rooms of the house, from the ground up: a room imports from itself and from rooms that stand before it.
# docs/architecture.md says what is in them.
ON_DEVICES = ["layout", "system", "files", "formats", "processing", "runtimes", "verification", "evaluation", "serving"]
WITH_TORCH = ["model", "step", "conversion", "reference", "calibration", "quantize", "distill", "export", "proof"]
COMMANDS = ["tools", "demo", "commands", "cli"]  # on devices too: they import what needs torch when they are called
ROOMS = ["version", "errors", "families", "config", "specs", *ON_DEVICES, *WITH_TORCH, *COMMANDS]

# What a device need not have.
FORBIDDEN = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "gguf",
    "onnx",
    "onnxscript",
    "av",
    "matplotlib",
    "psutil",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "executorch",
    "torchao",
    "pytorch_tokenizers",
)


TOP = ("linmu", "linmu.__main__")  # the public API and `python -m linmu`: nothing imports them


def room(module: str) -> str:
    return module.split(".")[1]


def floor(module: str) -> int:
    return len(ROOMS) if module in TOP else ROOMS.index(room(module))


DEVICE = [name for name in MODULES if name not in TOP and room(name) not in WITH_TORCH]


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of linmu that a module imports anywhere: at its top, in functions, for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names] or [node.module or ""]
            names += [node.module or ""] if not set(names) <= set(MODULES) else []
        found |= {name for name in names if name in MODULES and name != module}
    return frozenset(found)


def module_level_imports(path):
    """Names imported when the module is: everything outside functions and `if TYPE_CHECKING`."""
    names = []
    stack = list(ast.parse(path.read_text("utf-8")).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            stack += [child for child in ast.iter_child_nodes(node)]
    return names


def within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_is_in_the_list():
    rooms = {room(name) for name in MODULES if "." in name} - {"__main__"}
    assert rooms == set(ROOMS)


def test_rooms_import_downwards_only():
    upwards = [f"{name} -> {other}" for name in MODULES for other in imports(name) if floor(other) > floor(name)]
    assert upwards == []


def test_no_circle_of_files_or_folders():
    files = {name: set(imports(name)) for name in MODULES if name != "linmu.__main__"}
    assert circle(files) == []
    folders: dict[str, set[str]] = {}
    for name, others in files.items():
        own = MODULES[name].parent
        for other in others:
            if own != PACKAGE and MODULES[other].parent not in (own, PACKAGE):
                folders.setdefault(str(own), set()).add(str(MODULES[other].parent))
    assert circle(folders) == []


def test_the_checks_above_find_circles():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and circle({"a": {"b"}, "b": {"c"}}) == []
    assert "linmu.proof.student" in imports("linmu.tools.verify")  # an import inside a function counts


@pytest.mark.parametrize("name", DEVICE)
def test_what_devices_import_needs_no_workstation(name):
    names = module_level_imports(MODULES[name])
    assert [item for item in names if within(item, FORBIDDEN)] == []
    assert [item for item in names if item.startswith("linmu.") and room(item) in WITH_TORCH] == []


def test_layout_needs_numpy_only():
    allowed = (*sys.stdlib_module_names, "numpy", "linmu")
    for path in (PACKAGE / "layout").glob("*.py"):
        assert [name for name in module_level_imports(path) if not within(name, allowed)] == [], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_small_and_modern(path):
    text = path.read_text("utf-8")
    assert text.count("\n") <= 400
    if len(text.splitlines()) > 1 and path.name != "__init__.py":
        assert "from __future__ import annotations" in text


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles_or_trusts_remote_code(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not any(within(name, ("pickle", "dill", "cloudpickle", "joblib")) for name in names)
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "eval", "exec", "pickle.load", "os.system")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False


@pytest.mark.parametrize("name", [name for name in MODULES if room(name + ".") in ("verification", "proof", "tools")])
def test_backends_are_told_apart_by_their_rows_only(name):
    """What verification needs of a backend stands in BACKENDS: a new one is one row."""
    for node in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            assert not ast.unparse(node.args[1]).endswith("Runner"), ast.unparse(node)
        if isinstance(node, ast.Compare):
            assert not ast.unparse(node.left).endswith(".backend"), ast.unparse(node)


def test_kinds_of_input_are_asked_of_the_precision_only():
    """The text "int8" is part of "int8_blocks"; Precision has them in a tuple and answers for it."""
    kinds, found = {"int8", "int4", "fp8", "int8_blocks", "int8_rows"}, set()
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
                if isinstance(node.left, ast.Constant) and node.left.value in kinds:
                    found.add(name)
    assert found == {"linmu.formats.precision"}


def test_broad_except_only_where_there_is_a_reason():
    # main() of the command line, and the tokenizers library: a bare Exception, and panics, which are not even that;
    # what one request raises must not end the others of a server.
    allowed = {"cli.py", "processing/tokens.py", "serving/failures.py"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found <= allowed


BLOCKED = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())
import linmu
for name in {names!r}:
    importlib.import_module(name)
"""


def test_device_side_imports_with_the_workstation_packages_blocked():
    script = BLOCKED.format(forbidden=FORBIDDEN, names=DEVICE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_linmu_is_light():
    script = "import sys, linmu; print(sorted({'torch', 'transformers', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
