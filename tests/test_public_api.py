"""The names of `linmu`: what commands call, what types say, and what happens where torch is not installed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

import linmu
from linmu.errors import InputError
from tests.folders import student_folder
from tests.paths import ROOT
from tests.test_architecture import FORBIDDEN, MODULES, imports

# Which of them a device has, and which commands call which.
NEED_TORCH = {
    "convert",
    "convert_model",
    "distill_student",
    "calibrate",
    "export_bundle",
    "LinMUForConditionalGeneration",
    "LinMUForCausalLM",
}
COMMANDS = {
    "convert": "convert",
    "distill": "distill_student",
    "eval": "evaluate",
    "calibrate": "calibrate",
    "export": "export_bundle",
    "build": "build",
    "verify": "verify",
    "run": "load",
    "bench": "bench",
    "inspect": "inspect",
}
BLOCKED = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())
import linmu
from linmu.errors import InputError, MissingComponentError
found = {{}}
for name in linmu.__all__:
    try:
        found[name] = type(getattr(linmu, name)).__name__
    except MissingComponentError as error:
        found[name] = [error.exit_code, str(error)]
try:
    linmu.inspect("nothing")
except InputError as error:
    found["used"] = error.exit_code
print(json.dumps(found))
"""


def test_every_name_without_torch():
    script = BLOCKED.format(forbidden=FORBIDDEN)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("used") == 2
    missing = {name for name, value in found.items() if isinstance(value, list)}
    assert missing == NEED_TORCH and set(found) == set(linmu.__all__)
    for name in missing:
        code, message = found[name]
        extra = "export" if name == "export_bundle" else "convert"
        assert code == 3 and f"torch is needed for linmu.{name} " in message and f"linmu[{extra}]" in message


def test_every_name_with_torch():
    for name in linmu.__all__:
        value = getattr(linmu, name)
        assert isinstance(value, str) or (callable(value) and value.__doc__)
    assert dir(linmu) == sorted(linmu.__all__)
    with pytest.raises(AttributeError, match="no attribute 'converted'"):
        _ = linmu.converted


def test_no_name_is_that_of_a_module():
    """Python binds a submodule's name in its package: a function of the same name would be there only sometimes."""
    assert {name.split(".")[1] for name in MODULES if "." in name}.isdisjoint(linmu.__all__)


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "linmu" / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.asname or alias.name): (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: row[:2] for name, row in linmu._PUBLIC.items()}
    assert set(linmu.__all__) == {"__version__", *seen} and (ROOT / "linmu" / "py.typed").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_call_exactly_these_functions(command):
    module, name = linmu._PUBLIC[COMMANDS[command]][:2]
    source = MODULES[f"linmu.commands.{command}"].read_text("utf-8")
    names = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
        if alias.name == name
    }
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert names and names <= calls and module in imports(f"linmu.commands.{command}")


def test_folders_may_be_texts(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for call in (
        lambda: linmu.convert(str(folder), str(tmp_path / "out")),
        lambda: linmu.export_bundle(str(folder), str(tmp_path / "out"), target="jetson"),
        lambda: linmu.calibrate(str(folder), str(tmp_path / "out.safetensors"), data=str(folder)),
        lambda: linmu.evaluate(str(folder), str(folder)),
        lambda: linmu.bench(str(folder)),
        lambda: linmu.build(str(folder)),
        lambda: linmu.verify(str(folder), report=str(tmp_path / "report.html")),
        lambda: linmu.inspect(str(folder)),
        lambda: linmu.load(str(folder)),
        lambda: linmu.distill_student(*[str(folder)] * 3, str(tmp_path / "out")),
    ):
        with pytest.raises(InputError) as told:
            call()
        assert told.value.exit_code == 2 and not (tmp_path / "out").exists()


def test_inputs_are_never_written_into(tmp_path):
    student = student_folder("llama", tmp_path)
    before = {path: path.read_bytes() for path in student.iterdir() if path.is_file()}
    for call in (
        lambda: linmu.convert(student, student, overwrite=True),
        lambda: linmu.convert(student / "teacher", student, overwrite=True),
        lambda: linmu.export_bundle(student, student, overwrite=True),
        lambda: linmu.export_bundle(student, student / "bundle", target="android"),
        lambda: linmu.calibrate(student, student / "model.safetensors", allow_random=True),
        lambda: linmu.distill_student(student, tmp_path / "teacher", tmp_path / "data", student / "out"),
        lambda: linmu.distill_student(student, tmp_path / "teacher", tmp_path / "data", tmp_path / "data"),
    ):
        with pytest.raises(InputError, match="two folders, neither in the other"):
            call()
    assert {path: path.read_bytes() for path in student.iterdir() if path.is_file()} == before
