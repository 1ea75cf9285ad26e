from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linmu.cli import main
from linmu.errors import InputError
from linmu.export.bundles import golden as golden_writer
from linmu.formats.bundle import open_bundle
from linmu.model.folders import load_student
from linmu.processing import Processor
from linmu.runtimes.backends import open_runner
from linmu.tools.verify import verify
from linmu.verification.golden import read_golden
from linmu.verification.hidden import HIDDEN, hidden_runner, hidden_states, whole_prompt
from tests.exports import export_bundle
from tests.folders import student_folder
from tests.paths import ROOT
from tests.verification import broken

FAMILY = "qwen3_vl"  # M-RoPE, deepstack, q and k norms, pictures of any size


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """(family, precision, settings) -> (student folder, bundle folder), made once."""
    found = {}

    def make(family: str, precision: str = "fp32", **settings) -> tuple[Path, Path]:
        key = (family, precision, tuple(sorted(settings.items())))
        if key not in found:
            root = tmp_path_factory.mktemp(family)
            student = student_folder(family, root, **settings)
            export_bundle(student, root / "bundle", preset=precision)
            found[key] = student, root / "bundle"
        return found[key]

    return make


def run(capsys, *arguments: object) -> tuple[int, dict]:
    """Exit code and JSON of `linmu verify`."""
    code = main(["verify", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out or "null")


def failures(report: dict) -> list[tuple[str, str]]:
    return [(check["level"], check["name"]) for check in report["checks"] if not check["ok"]]


@pytest.mark.parametrize(
    ("family", "precision", "settings"),
    [
        ("llama", "fp32", {"text_window": 5}),
        ("llama", "fp32", {"text_window": 4, "text_sinks": 1, "text_window_projections": "shared"}),
        ("qwen3_vl", "fp32", {}),
        ("qwen2_5_vl", "fp16", {}),
        ("smolvlm", "fp16", {"decay": "kv_head", "skip": True}),
        ("llava_dinov2", "fp16", {"causal_windows": True}),
    ],
)
def test_a_good_bundle_agrees_with_golden_vectors_and_student(capsys, made, tmp_path, family, precision, settings):
    student, bundle = made(family, precision, **settings)
    page = tmp_path / "report.html"
    code, report = run(capsys, bundle, "--student", student, "--steps", "40", "--report", page)
    assert (code, failures(report)) == (0, []) and report["first_stage_that_differs"] is None
    levels = {(check["level"], check["backend"]) for check in report["checks"]}
    wanted = {"graph", "rollout", "greedy", "prompt", "student", "bisect"}
    assert levels >= {(level, backend) for level in wanted for backend in ("onnxruntime", "torch")}
    rollout = next(check for check in report["checks"] if check["level"] == "rollout")
    assert set(rollout["worst_by_kind"]) == {"logits", "states"} and rollout["worst"]["error"] > 0
    assert {len(curve["errors"]) for curve in report["curves"]} == {40, 41}  # the student's has the prompt as step 0
    html = page.read_text()
    assert html.count("<svg") == 4 and "src=" not in html and "href=" not in html and "agrees with" in html


def broken_by(change):
    return pytest.param(change, id=change.__name__)


def one_weight_byte(folder):
    broken.weight_byte(folder, "layers.1.down")


def one_token_embedding_byte(folder):
    broken.weight_byte(folder, "token_embedding")


def one_decay_byte(folder):
    broken.weight_byte(folder, "layers.2.dt_bias_f")


def one_backward_conv_byte(folder):
    broken.weight_byte(folder, "layers.0.conv_b")


def not_a_number(folder):
    broken.weight_nan(folder, "layers.0.conv_f_bias")


def swapped_recurrent(folder):
    broken.swapped_states(folder, "step", "present.0.recurrent", "present.1.recurrent")


def swapped_conv_of_prefill(folder):
    broken.swapped_states(folder, "prefill", "present.1.conv", "present.2.conv")


def transposed_step(folder):
    broken.transposed_state(folder, "step", "present.1.recurrent")


def transposed_prefill(folder):
    broken.transposed_state(folder, "prefill", "present.2.recurrent")


def graph_output_order(folder):
    broken.output_order(folder, "step")


def off_by_one_rotation(folder):
    broken.rotary_off_by_one(folder)


def mean_of_pixels(folder):
    broken.processor_setting(folder, "mean", [0.48, 0.46, 0.41])


def resampling_filter(folder):
    broken.processor_setting(folder, "resample", 2)


def vision_weights(folder):
    broken.vision_byte(folder)


BREAKS = {
    one_weight_byte: {"graph", "rollout"},
    one_token_embedding_byte: {"graph"},
    one_decay_byte: {"graph", "rollout"},
    one_backward_conv_byte: {"graph", "rollout"},
    not_a_number: {"graph", "rollout", "greedy", "prompt"},
    swapped_recurrent: {"graph", "rollout"},
    swapped_conv_of_prefill: {"graph", "rollout"},
    transposed_step: {"graph", "rollout"},
    transposed_prefill: {"graph", "rollout"},
    graph_output_order: {"contract"},
    off_by_one_rotation: {"graph", "rollout"},
    mean_of_pixels: {"prompt"},
    resampling_filter: {"prompt"},
    vision_weights: {"graph"},
}
SESSION_BREAKS = (mean_of_pixels, resampling_filter)


@pytest.mark.parametrize("change", [broken_by(change) for change in BREAKS])
def test_a_broken_bundle_fails_on_its_golden_vectors(capsys, made, tmp_path, change):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    change(folder)
    broken.rehash(folder)
    code, report = run(capsys, folder, "--backend", "onnxruntime", "--steps", "24")
    assert code == 1 and report["ok"] is False
    failed = failures(report)
    assert {level for level, _ in failed} >= BREAKS[change]
    if change in SESSION_BREAKS:  # the graphs themselves are right, and the report says so
        assert not {level for level, _ in failed} & {"graph", "rollout", "contract"}
    assert any(check["level"] == "prompt" for check in report["checks"])  # the last level ran all the same


@pytest.mark.parametrize("change", [broken_by(change) for change in BREAKS if change is not graph_output_order])
def test_the_bisect_names_the_stage(capsys, made, tmp_path, change):
    student, bundle = made(FAMILY)
    folder = broken.copy_of(bundle, tmp_path / "bundle")
    change(folder)
    broken.rehash(folder)
    code, report = run(capsys, folder, "--student", student, "--backend", "onnxruntime", "--steps", "24")
    assert code == 1
    culprit = report["first_stage_that_differs"]
    if change in SESSION_BREAKS:
        assert culprit == "runner [onnxruntime] -> session [onnxruntime]"
    elif change is vision_weights:
        assert culprit == "student's tower -> vision graph"
    else:
        assert culprit == "step form -> graph files [onnxruntime]"


EVERY = "every position of the prompt"


def test_what_only_vision_tokens_of_the_last_layer_show_is_found(capsys, made, tmp_path):
    """0.01 in the last layer's backward dt_bias: no logits of a last token, no state, no answer sees it.

    Where half of a state is left after 16 tokens; after 500 the same change moves outputs by 1e-6, float32's noise.
    """
    student, bundle = made(FAMILY, max_half_life=16.0)
    folder = broken.copy_of(bundle, tmp_path / "bundle")
    broken.weight_nudge(folder, "layers.2.dt_bias_b", 0.01)
    broken.rehash(folder)
    code, report = run(capsys, folder, "--student", student, "--backend", "onnxruntime", "--steps", "24")
    assert code == 1 and report["first_stage_that_differs"] == EVERY
    assert failures(report) == [("graph", "prefill, every position"), ("student", EVERY)]


@pytest.mark.parametrize("layer", (0, 1))
def test_a_nudge_in_any_layer_shows_at_some_position(capsys, made, tmp_path, layer):
    folder = broken.copy_of(made(FAMILY, max_half_life=16.0)[1], tmp_path / "bundle")
    broken.weight_nudge(folder, f"layers.{layer}.dt_bias_b", 0.01)
    broken.rehash(folder)
    for backend in ("onnxruntime", "torch"):
        code, report = run(capsys, folder, "--backend", backend, "--steps", "8")
        assert code == 1 and ("graph", "prefill, every position") in failures(report)
        assert ("graph", "prefill, text only, every position") not in failures(report)


def test_hidden_states_are_those_of_the_student(made):
    """What a graph shows is what transformers calls the last hidden state."""
    student, bundle = made("llama", "fp32", text_window=5)
    opened = open_bundle(bundle)
    inputs = Processor.from_folder(bundle).encode("as wide as the sea")
    with torch.no_grad(), open_runner(opened, "onnxruntime") as runner:
        arguments = {"input_ids": torch.from_numpy(inputs.input_ids)[None], "output_hidden_states": True}
        wanted = load_student(student)(**arguments).hidden_states[-1][0].numpy()
        with hidden_runner(opened, runner) as shown:
            found = hidden_states(shown, whole_prompt(shown, inputs, opened.manifest))
    assert found.shape == wanted.shape and abs(found - wanted).max() < 5e-5 * wanted.std()


def test_bundles_that_show_no_hidden_states_are_still_verified(capsys, made, tmp_path):
    """As exported before their values had names."""
    folder = broken.copy_of(made("llama", "fp32", text_window=5)[1], tmp_path / "bundle")
    path = folder / "prefill.onnx"
    path.write_bytes(path.read_bytes().replace(HIDDEN.encode(), HIDDEN.replace("exposed", "unknown").encode()))
    broken.rehash(folder)
    code, report = run(capsys, folder, "--backend", "onnxruntime", "--steps", "8")
    assert code == 0 and not [check for check in report["checks"] if "every position" in check["name"]]


def test_a_changed_file_without_a_new_hash_fails_its_contract(capsys, made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    one_weight_byte(folder)
    code, report = run(capsys, folder, "--backend", "onnxruntime", "--steps", "8")
    assert code == 1 and ("contract", "files and hashes") in failures(report)
    note = next(check["note"] for check in report["checks"] if check["level"] == "contract")
    assert "weights.data" in note and any(level == "graph" for level, _ in failures(report))


def test_a_missing_file_fails_its_contract(capsys, made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    (folder / "step.onnx").unlink()
    code, report = run(capsys, folder)
    assert code == 1 and failures(report) == [("contract", "files and hashes")]
    assert "step.onnx" in report["checks"][0]["note"]


def test_a_torn_graph_fails_its_contract(capsys, made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    path = folder / "prefill.onnx"
    path.write_bytes(path.read_bytes()[:-500])
    broken.rehash(folder)
    code, report = run(capsys, folder, "--backend", "onnxruntime")
    assert code == 1 and ("contract", "opening the graphs") in failures(report)


def test_the_torch_backend_fails_on_broken_weights_too(capsys, made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    one_weight_byte(folder)
    broken.rehash(folder)
    code, report = run(capsys, folder, "--backend", "torch", "--steps", "8")
    assert code == 1 and {level for level, _ in failures(report)} >= {"graph", "rollout"}


def test_other_layout_rules_fail(capsys, made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    decoder = json.loads((folder / "decoder.json").read_text())  # must say the same as the manifest
    decoder["form"]["mmate"]["scan"] = "raster"
    (folder / "decoder.json").write_text(json.dumps(decoder))
    broken.rehash(folder, mmate=decoder["form"]["mmate"])
    code, report = run(capsys, folder, "--backend", "onnxruntime", "--steps", "8")
    assert code == 1 and ("graph", "prefill") in failures(report)
    assert ("graph", "prefill, text only") not in failures(report)


def test_a_manifest_that_says_other_layout_rules_than_the_decoder_is_refused(capsys, made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    mmate = json.loads((folder / "decoder.json").read_text())["form"]["mmate"]
    broken.rehash(folder, mmate={**mmate, "window_rows": mmate["window_rows"] + 1})
    code, report = run(capsys, folder, "--backend", "onnxruntime", "--steps", "8")
    assert code == 1 and failures(report) == [("contract", "opening the graphs")]


def test_another_student_is_refused(capsys, made):
    student, _ = made("qwen2_5_vl", "fp16")
    _, bundle = made(FAMILY)
    assert main(["verify", str(bundle), "--student", str(student)]) == 2
    assert "was not made of" in capsys.readouterr().err


def test_golden_vectors_of_another_model_are_refused(made, tmp_path):
    folder = broken.copy_of(made(FAMILY)[1], tmp_path / "bundle")
    broken.rehash(folder, weights_hash="5" * 64)
    with pytest.raises(InputError, match="another model"):
        verify(folder)


def test_what_is_no_bundle_is_bad_input(capsys, tmp_path):
    assert main(["verify", str(tmp_path)]) == 2
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert "no bundle at" in capsys.readouterr().err


def test_golden_files_are_small(made):
    for family, precision in ((FAMILY, "fp32"), ("qwen2_5_vl", "fp16")):
        _, bundle = made(family, precision)
        assert sum(path.stat().st_size for path in (bundle / "golden").iterdir()) < 4 * 2**20


def test_states_too_large_for_the_budget_are_still_checked(capsys, made, tmp_path, monkeypatch):
    student, _ = made("llama", "fp32", text_window=5)
    for name in ("SHARE", "LEAST"):
        monkeypatch.setattr(golden_writer, name, 0)
    bundle = tmp_path / "bundle"
    export_bundle(student, bundle)
    vectors = read_golden(open_bundle(bundle))
    assert vectors.snapshot("step").full == {} and set(vectors.snapshot("end").norms) == set(
        vectors.snapshot("prefill").projections
    )
    assert run(capsys, bundle, "--backend", "onnxruntime", "--steps", "300")[0] == 0
    transposed_step(bundle)
    broken.rehash(bundle)
    code, report = run(capsys, bundle, "--backend", "onnxruntime")
    assert code == 1 and {("graph", "step.onnx"), ("rollout", "step.onnx, 64 steps")} <= set(failures(report))


WITHOUT = """
import sys
for name in ("torch", "transformers", "onnx", "onnx_ir", "onnxscript"):
    sys.modules[name] = None  # as if it were not installed
from linmu.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_torch(*arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT, "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_verify_works_without_torch(made, tmp_path):
    student, bundle = made(FAMILY)
    done = without_torch(bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backends"] == ["onnxruntime"]
    assert without_torch(bundle, "--backend", "torch").returncode == 3
    assert without_torch(bundle, "--student", student).returncode == 3
    folder = broken.copy_of(bundle, tmp_path / "bundle")
    transposed_step(folder)
    broken.rehash(folder)
    done = without_torch(folder)
    assert done.returncode == 1 and "DOES NOT AGREE" in done.stdout and "present" not in done.stderr
