from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "linmu"
FOLDERS = ("linmu", "tests", "examples", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Right of the bundle: these may import none of the workstation's packages when they are imported.
DEVICE_FOLDERS = ("demo", "evaluation", "layout", "processing", "runtimes")
EXCEPT = {"runtimes/torch_runner.py", "evaluation/torch_answerer.py"}
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
FORBIDDEN_OWN = ("linmu.model", "linmu.export", "linmu.distill", "linmu.calibration", "linmu.quantize")


def device_files():
    top = list(PACKAGE.glob("*.py"))
    inner = [path for folder in DEVICE_FOLDERS for path in (PACKAGE / folder).rglob("*.py")]
    return sorted(path for path in top + inner if path.relative_to(PACKAGE).as_posix() not in EXCEPT)


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


@pytest.mark.parametrize("path", device_files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_device_side_imports_nothing_of_the_workstation(path):
    bad = [name for name in module_level_imports(path) if within(name, FORBIDDEN + FORBIDDEN_OWN)]
    assert not bad


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


def test_broad_except_only_where_there_is_a_reason():
    # main() of the command line, and the tokenizers library: a bare Exception, and panics, which are not even that.
    allowed = {"cli.py", "processing/tokens.py"}
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
from linmu.errors import MissingComponentError
try:
    linmu.convert
except MissingComponentError as error:
    print(error.exit_code, error)
"""


def test_device_side_imports_with_the_workstation_packages_blocked():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in device_files()
        if path.name != "__main__.py"
    ]
    script = BLOCKED.format(forbidden=FORBIDDEN, names=names)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 torch is needed for linmu.convert") and "linmu[convert]" in done.stdout


def test_importing_linmu_is_light():
    script = "import sys, linmu; print(sorted({'torch', 'transformers', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
