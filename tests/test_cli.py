from __future__ import annotations

import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from linmu import __version__
from linmu.cli import main
from linmu.commands.bench import context_lengths
from linmu.commands.convert import mmate_config
from linmu.commands.output import Results, plain
from linmu.config import MMateConfig, converted_with
from linmu.errors import InputError
from linmu.runtimes.backends import usable_threads
from linmu.system.interrupts import Stopped, raise_if_stopped, stop_signals
from linmu.verification.report import Check, VerifyReport
from tests.bundles import tiny_bundle
from tests.paths import ROOT

COMMANDS = ("convert", "distill", "eval", "calibrate", "export", "build", "verify", "run", "bench", "inspect", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example(capsys, command, flag):
    assert main([command, flag]) == 0
    captured = capsys.readouterr()
    assert f"linmu {command}" in captured.out and "Example: linmu" in captured.out and not captured.err


def test_no_command_shows_help_and_fails(capsys):
    assert main([]) == 2
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "nope"),
        (["export", "student"], "--out"),
        (["inspect"], "folder"),
        (["inspect", "none"], "neither a bundle nor a student"),
        (["verify", "b", "--steps", "0"], "steps"),
        (["bench", "b", "--contexts", "512,x"], "token counts"),
        (["convert", "t", "-o", "s", "--set", "taps"], "NAME=VALUE"),
        (["convert", "t", "-o", "t"], "two folders"),
        (["convert", "t", "-o", "t/inside"], "two folders"),
        (["convert", "t/inside", "-o", "t", "--overwrite"], "two folders"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "none"], ["inspect", "none", "--debug"]])
def test_debug_shows_the_traceback(capsys, arguments):
    assert main(arguments) == 2
    assert "Traceback" in capsys.readouterr().err


def test_inspect(capsys, tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    assert main(["inspect", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["state_bytes"] == 4 * (150 + 210) and captured.err == ""
    assert main(["inspect", str(folder)]) == 0
    assert "memory forecast" in capsys.readouterr().out


def test_a_damaged_bundle_is_one_line(capsys, tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    (folder / "step.onnx").unlink()
    assert main(["inspect", str(folder)]) == 2
    assert "step.onnx is missing" in capsys.readouterr().err


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["doctor"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def run_linmu(*arguments, before="", cwd=None):
    script = f"import sys\n{before}\nfrom linmu.cli import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


BLOCK = """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize(
    ("arguments", "extra"), [(("convert", "t", "-o", "s"), "convert"), (("export", "s", "-o", "b"), "export")]
)
def test_missing_component_is_exit_3_and_names_the_extra(tmp_path, arguments, extra):
    done = run_linmu(*arguments, before=BLOCK, cwd=tmp_path)
    assert done.returncode == 3 and done.stdout == ""
    assert "torch is needed" in done.stderr and f"linmu[{extra}]" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("export",), ("convert", "examples/demo_teacher")], ids=("export", "convert"))
def test_an_output_that_exists_is_refused_before_torch_loads(tmp_path, arguments):
    (tmp_path / "out").mkdir()
    line = [*arguments, "-o", str(tmp_path / "out")]
    code = f"import sys; from linmu.cli import main; print(main({line!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 False\n" and "exists already; fix: pass --overwrite" in done.stderr


def test_doctor_and_inspect_work_without_torch(tmp_path):
    folder = tiny_bundle(tmp_path / "b")
    assert run_linmu("inspect", str(folder), before=BLOCK).returncode == 0
    done = run_linmu("doctor", "--json", before=BLOCK)
    assert done.returncode == 0 and json.loads(done.stdout)["ready"]["convert"] is False


def test_unexpected_error_is_one_line_with_a_hint():
    before = "import linmu.tools.inspect\ndef broken(folder): raise RuntimeError('two\\nlines')\n"
    done = run_linmu("inspect", "x", before=before + "linmu.tools.inspect.inspect_folder = broken")
    assert done.returncode == 1
    assert done.stderr == "error: RuntimeError: two lines; run with --debug for the traceback\n"


WAIT = """
import sys, time
import linmu.tools.inspect
from linmu.cli import main
def wait(folder):
    print("ready", file=sys.__stdout__, flush=True)
    time.sleep(60)
linmu.tools.inspect.inspect_folder = wait
sys.exit(main(["inspect", "x"]))
"""


def test_interrupt_is_exit_130():
    pipe = subprocess.PIPE
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    command = [sys.executable, "-c", WAIT]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heard) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "error: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_clean_up_too(tmp_path, number):
    heard = partial(signal.signal, number, signal.SIG_DFL)  # under nohup a process ignores one of them
    with subprocess.Popen(
        [sys.executable, "-c", HALF, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    ) as process:
        assert process.stdout.readline() == "ready\n" and len(os.listdir(tmp_path)) == 1
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, f"error: stopped by {number.name}\n")
    assert os.listdir(tmp_path) == []


HALF = """
import sys, time
from pathlib import Path
import linmu.tools.inspect
from linmu.files.atomic import atomic_folder
from linmu.cli import main
def half(folder):
    with atomic_folder(Path(folder)):
        print("ready", file=sys.__stdout__, flush=True)
        time.sleep(60)
linmu.tools.inspect.inspect_folder = half
sys.exit(main(["inspect", sys.argv[1]]))
"""


def test_a_signal_that_is_ignored_stays_ignored():
    script = "import os, signal, linmu.system.interrupts as i\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script += "with i.stop_signals(): os.kill(os.getpid(), signal.SIGHUP); print('alive')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_inside_a_destructor_is_not_lost(request):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    class Bar:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(Stopped), stop_signals():
        Bar()
        raise_if_stopped()
    with stop_signals():
        raise_if_stopped()  # the next command does not see it


@pytest.mark.parametrize("flag", [[], ["--json"]])
@pytest.mark.parametrize("closed", ["reader", "stdout"])
def test_reader_that_went_away(tmp_path, flag, closed):
    """What was to be printed is dropped, and the exit code is the command's own."""
    folder = tiny_bundle(tmp_path / "b")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "linmu", "inspect", str(folder), *flag]
    before = partial(os.close, 1) if closed == "stdout" else None
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=before)
    os.close(writing)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_stdout_will_do(tmp_path, encoding):
    folder = tiny_bundle(tmp_path / "b", created_with={"linmu": "0.1.0 \N{SNOWMAN} \U0001f600"})
    command = [sys.executable, "-m", "linmu", "inspect", str(folder)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for flag in ([], ["--json"]):
        done = subprocess.run([*command, *flag], capture_output=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding))["kind"] == "bundle"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_reports_have_frames_that_their_stream_can_show(encoding):
    checks = (Check("graph", "torch", "step", True),)
    report = VerifyReport("bundle", "its golden vectors", ("torch",), checks, (), None)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Results(stream).report(report, json_output=False)
    shown = stream.buffer.getvalue().decode(encoding)
    assert "step" in shown and ("+--" in shown) == (encoding == "ascii") and ("│" in shown) == (encoding == "utf-8")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("PermissionError(13, 'Permission denied', '/closed/x')", "the system refuses /closed/x; got Permission"),
        ("OSError(28, 'No space left on device')", "disk full while writing"),
        ("OSError(24, 'Too many open files')", "the system refuses an operation; got Too many open files"),
        ("MemoryError()", "not enough memory"),
        ("UnicodeEncodeError('utf-8', chr(0xd800), 0, 1, 'surrogates')", "a text or a name that has no bytes"),
    ],
)
def test_errors_of_the_system_are_bad_input(error, said):
    before = (
        f"import linmu.tools.inspect\ndef broken(folder): raise {error}\nlinmu.tools.inspect.inspect_folder = broken"
    )
    done = run_linmu("inspect", "x", before=before)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_no_more_threads_than_cores():
    said = []
    assert usable_threads(100_000, said.append) == os.cpu_count() and "100000 threads asked for" in said[0]
    assert usable_threads(1, said.append) == 1 and usable_threads(None, said.append) is None and len(said) == 1
    for wrong in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="threads"):
            usable_threads(wrong)


def test_libraries_that_print_do_not_disturb_json(tmp_path):
    before = "import linmu.tools.inspect\nreal = linmu.tools.inspect.inspect_folder\n"
    before += "def noisy(f): print('noise'); return real(f)\n"
    folder = tiny_bundle(tmp_path / "b")
    done = run_linmu("inspect", str(folder), "--json", before=before + "linmu.tools.inspect.inspect_folder = noisy")
    assert json.loads(done.stdout)["kind"] == "bundle" and "noise" in done.stderr


@pytest.mark.parametrize("flag", [(), ("--debug",)])
def test_warnings_of_unasked_libraries_are_for_debugging(flag):
    assert main([*flag, "--version"]) == 0
    assert logging.getLogger("torchao").isEnabledFor(logging.WARNING) == bool(flag)


def test_settings():
    expected = MMateConfig(taps=3, rope=False, decay="kv_head", norm_eps=1e-6)
    assert mmate_config(["taps=3", "rope=false", "decay=kv_head", "norm_eps=1e-6", "text_window=0"]) == expected
    assert mmate_config([]) == converted_with({})
    for wrong in ("taps=x", "rope=1", "taps=1", "decay=none", "surprise=1"):
        with pytest.raises(InputError):
            mmate_config([wrong])


def test_context_lengths():
    assert context_lengths("512, 2048") == (512, 2048)
    for wrong in ("", "0", "-1", "1,,2", "²"):
        with pytest.raises(InputError):
            context_lengths(wrong)


@dataclass(frozen=True)
class Sample:
    values: tuple[float, ...]
    path: Path


def test_plain_values():
    sample = Sample((1.0, math.nan, math.inf), Path("a"))
    value = {"s": sample, 3: np.float32(0.5), "n": np.arange(2), "t": (True, None)}
    assert plain(value) == {"s": {"values": [1.0, None, None], "path": "a"}, "3": 0.5, "n": [0, 1], "t": [True, None]}


@pytest.mark.parametrize("command", ["export", "calibrate"])
def test_a_student_that_no_target_carries_is_refused_before_torch_loads(command, tmp_path):
    student, out = tmp_path / "student", tmp_path / "calib.safetensors"
    student.mkdir()
    config = {"model_type": "linmu_llama", "linmu": MMateConfig(rule="gated_delta").to_json()}
    (student / "config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((3, 5), np.float32)}, student / "model.safetensors")
    told = "import atexit; atexit.register(lambda: print('torch' in sys.modules))"
    done = run_linmu(command, str(student), "-o", str(out), before=told)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not out.exists()
    assert done.stdout == "False\n"
    assert "cannot be calibrated or exported yet; got rule gated_delta" in done.stderr
