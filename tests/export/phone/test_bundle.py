"""A phone bundle of a student with pictures: contract, verify, states that move, every way it can be broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("executorch")

from linmu.cli import main  # noqa: E402
from linmu.errors import CheckFailed, InputError  # noqa: E402
from linmu.export.phone.bundle import BACKENDS, PIECE_TOKENS, PROGRAM, require_delegated  # noqa: E402
from linmu.export.phone.lowering import LEAST_SHARE, MethodReport  # noqa: E402
from linmu.export.phone.stock import EXTRA  # noqa: E402
from linmu.export.phone.weights import program_weights  # noqa: E402
from linmu.export.targets import write_bundle  # noqa: E402
from linmu.formats.bundle import open_bundle, write_manifest  # noqa: E402
from linmu.formats.manifest import Manifest  # noqa: E402
from linmu.formats.manifest_object import MANIFEST_NAME  # noqa: E402
from linmu.model.folders import load_student  # noqa: E402
from linmu.processing import ModelInputs  # noqa: E402
from linmu.runtimes.et_runner import open_program  # noqa: E402
from linmu.runtimes.session import load  # noqa: E402
from linmu.step.pack import decoder_form  # noqa: E402
from linmu.tools.verify import verify  # noqa: E402
from linmu.verification.hidden import whole_prompt  # noqa: E402
from tests.export.phone.students import one_layer, phone_bundle, unequal_steps  # noqa: E402
from tests.folders import student_folder  # noqa: E402
from tests.runtimes.failing import check_every_piece, check_every_token  # noqa: E402
from tests.tiny import tiny_image  # noqa: E402

pytestmark = pytest.mark.slow  # lowering for phones takes a minute


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return one_layer("smolvlm", tmp_path_factory.mktemp("smolvlm"), patch)


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    return phone_bundle(student, tmp_path_factory.mktemp("android") / "bundle")


@pytest.fixture
def copy(exported, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(exported[0], tmp_path / "bundle")


def rewritten(folder, **changes):
    """The bundle with another manifest, whose hashes are right."""
    manifest = Manifest.from_json(json.loads((folder / MANIFEST_NAME).read_text("utf-8")))
    write_manifest(folder, replace(manifest, **changes))


def refused(folder, capsys, *words):
    """`linmu run` ends with exit code 2 and one line that has the words."""
    capsys.readouterr()
    assert main(["run", str(folder), "-p", "What?", "--max-new-tokens", "1"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1 and all(word in said for word in words), said


def test_the_manifest(exported):
    folder, report = exported
    manifest = open_bundle(folder).manifest
    assert manifest.target == "android" and manifest.backends == BACKENDS
    assert set(manifest.graphs) == {"token_embedding", "prefill", "step", "vision"}
    assert {spec.file for spec in manifest.graphs.values()} == {PROGRAM}
    methods = manifest.program["methods"]
    assert set(methods) == {*manifest.graphs, "text_decoder", "vision_encoder"}
    for name, method in methods.items():
        assert method["share"] >= LEAST_SHARE, name
        assert (method["macs"] > 0) == (name != "token_embedding"), name
    assert json.loads(json.dumps(report.to_json()))["graphs"]["prefill"]["share"] == methods["prefill"]["share"]


def test_the_tied_table_is_there_once(exported, student):
    """Lookups and the head's products read the same bytes."""
    form = decoder_form(load_student(student))
    table = program_weights(form)["token_embedding"]
    assert "head" not in form.weights
    assert (exported[0] / PROGRAM).read_bytes().count(table.numpy().tobytes()) == 1


def test_a_step_gives_the_bits_that_the_stock_runner_gets(exported):
    assert unequal_steps(exported[0], 50) == []


def test_weights_stand_once_in_the_file(exported, student):
    content = (exported[0] / PROGRAM).read_bytes()
    weights = program_weights(decoder_form(load_student(student)))
    times = {name: content.count(value.numpy().tobytes()) for name, value in weights.items() if value.numel() > 999}
    assert times.pop("token_embedding") <= 2  # tied: the head is XNNPACK's, the lookup a portable kernel's
    matrices = [f"layers.0.{name}" for name in ("in_proj", "swin", "out_proj", "gate_up", "down")]
    assert times == dict.fromkeys(matrices, 1)


def test_it_agrees_with_its_reference(exported, student):
    report = verify(exported[0], student=student, steps=24)
    assert report.ok, report.to_text()
    levels = {check.level for check in report.checks}
    assert {"contract", "graph", "rollout", "greedy", "prompt", "student", "bisect"} <= levels


def test_what_was_said_is_forgotten_at_position_0(exported):
    width = open_bundle(exported[0]).manifest.model.hidden_size
    rows = torch.zeros(1, 3, width + EXTRA)
    rows[..., :width] = torch.linspace(-1, 1, 3 * width).view(1, 3, width)
    decoder, positions = open_program(exported[0] / PROGRAM).load_method("text_decoder"), torch.arange(3)

    def logits(embeds, first):
        return decoder.execute([embeds, positions + first])[0].clone()

    first, going_on = logits(rows, 0), logits(rows, 3)
    assert torch.isfinite(first).all() and not torch.equal(first, going_on)
    broken = rows.clone()
    broken[..., :width] = torch.nan
    assert logits(broken, 6).isnan().any() and logits(rows, 9).isnan().any()
    assert torch.equal(logits(rows, 0), first)


def test_states_move_to_onnx_runtime_and_back(exported, student, tmp_path):
    write_bundle(student, tmp_path / "onnx", target="onnx")
    picture, told = tiny_image(3), {}
    for first, second in ((exported[0], tmp_path / "onnx"), (tmp_path / "onnx", exported[0])):
        with load(first) as here, load(second) as there:
            here.generate("What is this?", [picture], max_new_tokens=5)
            here.state.save(tmp_path / "state.safetensors")
            there.state.load(tmp_path / "state.safetensors")
            assert there.state.tokens == here.state.tokens
            said = [session.generate("And that?", max_new_tokens=9).token_ids for session in (here, there)]
            assert said[0] == said[1]
            told[here.runner.backend] = said[0]
    assert set(told) == {"executorch", "onnxruntime"} and told["executorch"] == told["onnxruntime"]


def test_long_prompts_run_in_pieces(exported):
    ids = np.arange(3, 200, dtype=np.int64).repeat(3)[:530]
    from linmu.processing import ModelInputs

    with load(exported[0]) as session:
        pieces = session.prefill(ModelInputs(ids, "")).copy()
        session.reset()
        small = session.prefill(ModelInputs(ids, ""), 101)
        assert session.state.tokens == 530
        assert float(np.abs(pieces - small).max()) < 1e-4 * float(pieces.std())


def test_what_fails_leaves_the_session_as_it_was(exported):
    def pair():
        return (load(exported[0], "executorch", threads=1) for _ in range(2))

    check_every_piece(*pair())
    for behind in (False, True):
        check_every_token(*pair(), behind)


def test_a_span_that_is_too_long_is_refused(exported):
    with load(exported[0]) as session:
        manifest, runner = session.bundle.manifest, session.runner
        most = manifest.profiles["prefill"]["inputs_embeds"]["max"][1]
        (piece,) = whole_prompt(runner, ModelInputs(np.full(most + 1, 7, np.int64), ""), manifest)
        with pytest.raises(InputError, match="needs tokens = .*at most .*smaller pictures"):
            runner.prefill(piece, session.state.handle)
        session.prefill(ModelInputs(np.full(PIECE_TOKENS + 1, 7, np.int64), ""), most + 1)  # text is cut


def test_a_truncated_program_is_refused(copy, capsys):
    whole = (copy / PROGRAM).read_bytes()
    (copy / PROGRAM).write_bytes(whole[:-1000])
    refused(copy, capsys, PROGRAM, f"{len(whole) - 1000} bytes", f"{len(whole)} bytes")
    rewritten(copy)  # the hash is right, the file is still short
    refused(copy, capsys, PROGRAM, "cut short")


def test_a_program_of_another_version_is_refused(copy, capsys):
    whole = bytearray((copy / PROGRAM).read_bytes())
    whole[4:8] = b"ET99"
    (copy / PROGRAM).write_bytes(whole)
    refused(copy, capsys, PROGRAM, "was changed", "sha256")
    rewritten(copy)
    refused(copy, capsys, PROGRAM, "no ExecuTorch program of this version", "ET99")


def test_a_damaged_program_is_refused(copy, capsys):
    whole = bytearray((copy / PROGRAM).read_bytes())
    whole[64:20000] = bytes(20000 - 64)
    (copy / PROGRAM).write_bytes(whole)
    rewritten(copy)
    refused(copy, capsys, PROGRAM)


def test_a_missing_method_is_named(copy, capsys):
    graphs = open_bundle(copy).manifest.graphs
    rewritten(copy, graphs={**graphs, "reverse": graphs["vision"]})
    refused(copy, capsys, "has no method 'reverse'", "text_decoder")


def test_another_shape_is_named(copy, capsys):
    graphs = open_bundle(copy).manifest.graphs
    pixels = replace(graphs["vision"].inputs[0], shape=(1, 3, 64, 63))
    rewritten(copy, graphs={**graphs, "vision": replace(graphs["vision"], inputs=(pixels,))})
    refused(copy, capsys, "input 'pixel_values' of vision", "[1, 3, 64, 63]")


def test_the_commands_take_it(exported, capsys):
    folder = exported[0]
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weight_bytes"] == (folder / PROGRAM).stat().st_size
    assert main(["bench", str(folder), "--contexts", "40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["backend"] == "executorch"


def test_executorch_missing_is_exit_3(exported, capsys, monkeypatch):
    from linmu.runtimes import backends

    monkeypatch.setattr(backends, "installed", lambda name: name != "executorch")
    assert main(["run", str(exported[0]), "-p", "What?"]) == 3
    said = capsys.readouterr().err
    assert "executorch is needed for backend executorch" in said and "linmu[mobile]" in said


def test_too_small_a_share_fails_and_says_what_is_left():
    good = MethodReport(1000, 951, 2)
    require_delegated({"step": good})
    bad = MethodReport(1000, 940, 3, {"bmm": 4, "cat": 1}, {"bmm": 60})
    with pytest.raises(CheckFailed, match=r"94.0% .* method prefill; got left: 6.0e\+01 of bmm; expected at least 95%"):
        require_delegated({"step": good, "prefill": bad})


def test_what_is_not_carried_is_refused_and_leaves_nothing(tmp_path):
    folder = student_folder("qwen2_5_vl", tmp_path)
    with pytest.raises(InputError, match="pictures of any size"):
        write_bundle(folder, tmp_path / "bundle", target="ios")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(InputError, match="preset of target .android.; got .fp16."):
        write_bundle(folder, tmp_path / "bundle", target="android", preset="fp16")
