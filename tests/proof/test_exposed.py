"""Bundles that round inputs: proven with their student call by call, and without it by golden vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from linmu.calibration.collect import calibrate
from linmu.errors import BundleError, InputError
from linmu.export.bundles import ties
from linmu.export.bundles.ties import SureTokens, Ties
from linmu.export.targets import write_bundle
from linmu.formats.bundle import open_bundle
from linmu.formats.decoder_file import read_decoder_file
from linmu.model.folders import load_student
from linmu.proof.exposed import ExposedRunner, expose_inputs
from linmu.proof.paths import exposed_paths
from linmu.reference.eager import StudentRunner
from linmu.reference.torch_runner import bundle_form
from linmu.runtimes.ort_runner import OrtRunner
from linmu.runtimes.session import load
from linmu.tools.verify import verify
from linmu.verification import levels
from linmu.verification.compare import NOISE_ROOM, Tolerance
from linmu.verification.golden import read_golden
from linmu.verification.players import RunnerPlayer
from tests.folders import student_folder
from tests.verification.broken import copy_of, rehash

FAST = {"samples": 3, "decode_tokens": 3, "long_tokens": 4, "state_tokens": 5, "kept_rows": 40}
CASES = [
    ("llama", "onnx", "int8"),
    ("llama", "onnx", "int4"),
    ("llama", "jetson", "fp8"),
    ("qwen3_vl", "onnx", "int8"),
    ("qwen3_vl", "jetson", "int8"),
]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    made = {}
    for family in ("llama", "qwen3_vl"):
        root = tmp_path_factory.mktemp(family)
        made[family] = student_folder(family, root), root / "calib.safetensors"
        calibrate(made[family][0], made[family][1], allow_random=True, **FAST)
    return made


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def place(request, students, tmp_path_factory):
    """(student, bundle, target, preset)."""
    family, target, preset = request.param
    out = tmp_path_factory.mktemp("bundles") / f"{family}-{target}"
    options = {"compile_check": False} if target == "jetson" else {}
    student, record = students[family]
    write_bundle(student, out, target=target, preset=preset, calibration=record, **options)
    return student, out, target, preset


def test_every_path_agrees_with_the_student(place) -> None:
    student, bundle, _, _ = place
    found = verify(bundle, student=student, steps=6)
    assert found.ok, found.to_text()
    names = [check.name for check in found.checks if check.level == "student" and check.backend == "onnxruntime"]
    assert [name.split(":")[0] for name in names] == ["graph files"] * 2 + ["session"] * 2 + ["greedy, 7 tokens"]
    for check in found.checks:
        if check.level == "student" and "same bits" not in check.name:
            assert "codes compared" in check.note and {"inputs", "logits", "states"} <= set(check.kinds)
            assert check.kinds["states"].error < 1e-4  # float32 on float32


def test_float16_states_are_followed_too(students, tmp_path) -> None:
    student, record = students["llama"]
    bundle = tmp_path / "bundle"
    write_bundle(student, bundle, target="onnx", preset="int4", calibration=record, state="fp16")
    found = verify(bundle, student=student, steps=40, backends=["onnxruntime"])
    assert found.ok, found.to_text()


def test_golden_vectors_are_held_to_the_tolerances_of_float32(place) -> None:
    golden, base = read_golden(open_bundle(place[1])), Tolerance()
    assert golden.float_inputs == (place[3] == "int4")
    if golden.float_inputs:
        noises = [golden.rollout["steps/noise"][-1], *(golden.graphs[f"{n}/noise"] for n in ("prefill", "step"))]
        assert (np.array(noises) * NOISE_ROOM <= (base.logits, base.state)).all()
        found = verify(place[1], steps=256)
        assert found.ok and {"onnxruntime", "torch"} <= {check.backend for check in found.checks}, found.to_text()
        return
    assert golden.metadata["sure_steps"] == "256" and golden.start == "text"
    for noise in (golden.rollout["steps/noise"][-1], golden.graphs["text/noise"], golden.graphs["step/noise"]):
        assert noise[1] * NOISE_ROOM <= base.state
        assert place[2] == "jetson" or noise[0] * NOISE_ROOM <= base.logits  # the head's products are half precision
    found = verify(place[1], backends=["onnxruntime"], steps=256)
    assert found.ok, found.to_text()


def change(folder: Path, name: str, edit) -> None:
    """Edit one stored weight in place."""
    entry = read_decoder_file(folder).weights[name]
    data = np.memmap(folder / "weights.data", np.uint8, "r+")
    size = int(np.prod(entry.shape)) * np.dtype(entry.dtype).itemsize
    array = data[entry.offset : entry.offset + size].view(entry.dtype).reshape(entry.shape)
    array[...] = edit(array.copy())
    data.flush()


def negated_column(q: np.ndarray) -> np.ndarray:
    if q.ndim == 3:  # blocks: the upper bit of the codes of one column
        q[5] = q[5] ^ 0x88
        return q
    q[:, 5] = q[:, 5] ^ 0x80 if q.dtype == np.uint8 else -q[:, 5]
    return q


WRONG = {
    "a scale off by 1%": ("layers.1.down.scale", lambda x: x * np.float32(1.01)),
    "a column negated": ("layers.1.gate_up.q", negated_column),
    # not 2: codes of fp8 have an exponent of their own, and twice the scale would be the same function
    "an input's scale times 1.5": ("layers.0.out_proj.input_scale", lambda x: x * np.float32(1.5)),
    "an int8 input's scale doubled": ("layers.0.gate_up.input_scale", lambda x: x * np.float32(2)),
    "an input's scale off by 1%": ("layers.2.in_proj.input_scale", lambda x: x * np.float32(1.01)),
}


@pytest.mark.parametrize("what", WRONG)
def test_golden_vectors_find_wrong_integers_and_scales(place, tmp_path, what) -> None:
    if "int8" in what and place[3] != "int8":
        pytest.skip("the same function in fp8")
    if "input" in what and place[3] == "int4":
        pytest.skip("inputs have no stored scale")
    bundle = copy_of(place[1], tmp_path / "broken")
    change(bundle, *WRONG[what])
    rehash(bundle)
    found = verify(bundle, backends=["onnxruntime"], steps=3)
    failed = [check for check in found.checks if not check.ok]
    assert {"graph", "rollout"} <= {check.level for check in failed}, found.to_text()


def wrong_scale(model: onnx.ModelProto) -> None:
    """One QuantizeLinear rounds with 1.01 times its scale, or one MatMulNBits does not round at all."""
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and "layers.1.down" in node.input[1]:
            next(attribute for attribute in node.attribute if attribute.name == "accuracy_level").i = 1
            return
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and "layers.1.down" in n.input[1])
    value = numpy_helper.from_array(np.float32(0.0101), "layers.1.wrong.input_scale")
    model.graph.initializer.append(value)
    node.input[1] = value.name


def test_a_graph_that_rounds_otherwise_fails_against_the_student(place, tmp_path) -> None:
    bundle = copy_of(place[1], tmp_path / "broken")
    for name in ("prefill", "step"):
        model = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
        wrong_scale(model)
        (bundle / f"{name}.onnx").write_bytes(model.SerializeToString())
    rehash(bundle)
    found = verify(bundle, student=place[0], backends=["onnxruntime"], steps=2)
    forced = [check for check in found.checks if check.level == "student" and "prompt and" in check.name]
    assert len(forced) == 2 and not any(check.ok for check in forced)
    assert all("rounded input of layers.1.down" in check.note for check in forced), found.to_text()
    assert found.culprit is not None


def test_inputs_are_exposed_once_by_matrix(place) -> None:
    model = onnx.load(place[1] / "step.onnx", load_external_data=False)
    matrices = expose_inputs(model)
    found = {f"layers.{i}.{m}" for i in range(3) for m in ("in_proj", "out_proj", "gate_up", "down")}
    head = {name for name in read_decoder_file(place[1]).packing if not name.startswith("layers.")}
    assert set(matrices) == found | head and len(head) == (place[2] == "onnx")
    twice = next(node for node in model.graph.node if node.op_type in ("QuantizeLinear", "MatMulNBits"))
    model.graph.node.append(twice)
    with pytest.raises(BundleError, match="used once"):
        expose_inputs(model)


def test_it_runs_and_says_what_it_is(place) -> None:
    precision = open_bundle(place[1]).manifest.precision
    int8 = ("int8",) if place[2] == "jetson" else ("int8", "int8_blocks")
    inputs = {"int4": ("int8_blocks",), "int8": int8, "fp8": ("fp8",)}
    assert (precision.weights, precision.matrix_inputs) == (place[3], inputs[place[3]])
    if place[2] == "jetson":  # no product in front of a rounding is in half precision
        assert {f"layers.{i}.controls" for i in range(3)} <= set(precision.float32_matrices)
    with load(place[1], backend="onnxruntime") as session:
        assert session.generate("Say yes.", max_new_tokens=3).token_ids


def config_entry(options: ort.SessionOptions, key: str) -> str | None:
    try:
        return options.get_session_config_entry(key)
    except RuntimeError:  # not set
        return None


def test_sessions_have_the_switches_that_are_meant_for_their_inputs(place, monkeypatch) -> None:
    """A bundle whose inputs are rounded by block has none of those of one static scale, whose name is alike."""
    opened = []

    class Recorded(ort.InferenceSession):
        def __init__(self, source, options, **given) -> None:
            super().__init__(source, options, **given)
            opened.append((options, given["disabled_optimizers"]))

    monkeypatch.setattr(ort, "InferenceSession", Recorded)
    bundle = open_bundle(place[1])
    with OrtRunner(bundle) as runner:
        for name in bundle.manifest.graphs:
            runner.session(name)
    assert len(opened) == len(bundle.manifest.graphs)
    switches = {"session.x64quantprecision": place[3] == "int8", "session.disable_quant_qdq": place[3] == "fp8"}
    for options, disabled in opened:
        for key, wanted in switches.items():
            assert config_entry(options, key) == ("1" if wanted else None), key
        assert disabled == (["MatMulAddFusion"] if place[3] == "int8" else [])


def test_tokens_are_chosen_where_no_tie_matters(place) -> None:
    bundle = open_bundle(place[1])
    form = bundle_form(bundle)
    student = load_student(place[0])
    runner = StudentRunner(student, precision=bundle.manifest.precision, form=form)
    runners = (runner, *Ties().twins(student, runner))
    sure, players = SureTokens(runners, []), [RunnerPlayer(one, bundle.manifest) for one in runners]
    start = [player.save() for player in players]

    def at_start(act):
        """What act() gives in the state that all noise here is measured in."""
        for player, saved in zip(players, start, strict=True):
            player.restore(saved)
        return act()

    def is_sure(token: int) -> bool:
        return at_start(lambda: sure.agree(players, [player.step(token).copy() for player in players]))

    # from the noisiest to the quietest; a call with many tokens may sum otherwise than one with one token
    tokens = at_start(lambda: sure.noise(players, np.arange(200))).argsort()[::-1].tolist()
    unsure = [token for token in tokens[:20] if not is_sure(token)]
    quiet = [token for token in tokens[-20:] if is_sure(token)]
    assert len(unsure) >= 3 and len(quiet) >= 3
    for wish in unsure[:3] + quiet[:3]:
        token, made = at_start(lambda wish=wish: sure.step(players, wish, f"test {wish}"))
        assert not sure.lost and sure.agree(players, made)
        assert (token == wish) == (wish in quiet)  # a token with ties is passed over


def test_a_cpu_whose_kernels_do_not_round_is_named(place, monkeypatch) -> None:
    """As on x86 without AVX2, where ONNX Runtime multiplies unrounded inputs without a word."""
    bundle = open_bundle(place[1])
    golden, blocks = read_golden(bundle), bundle.manifest.precision.rounds_by_block
    monkeypatch.setattr(levels, "rounds_by_block", lambda: False)
    for reference, asked in ((golden, blocks and not golden.float_inputs), (None, blocks)):
        found = levels.kernel_checks(bundle, reference)
        assert [check.ok for check in found] == [False] * asked
        assert all("AVX2" in check.note and "--quant none" in check.note for check in found)
    monkeypatch.setattr(levels, "rounds_by_block", lambda: True)
    assert all(check.ok for check in levels.kernel_checks(bundle, None))


def test_candidates_are_looked_at_in_parts(place, monkeypatch) -> None:
    bundle, student = open_bundle(place[1]), load_student(place[0])
    runner = StudentRunner(student, precision=bundle.manifest.precision, form=bundle_form(bundle))
    runners = (runner, *Ties().twins(student, runner))
    sure, players = SureTokens(runners, []), [RunnerPlayer(one, bundle.manifest) for one in runners]
    tokens = np.arange(7)
    parts = np.concatenate([sure.noise(players, tokens[start : start + 3]) for start in (0, 3, 6)])
    monkeypatch.setattr(ties, "STATE_ROOM", 3 * bundle.manifest.state_bytes)  # parts of 3, 3 and 1
    calls, step = [], SureTokens._step
    monkeypatch.setattr(sure, "_step", lambda *given: calls.append(len(given[-1])) or step(*given))
    np.testing.assert_array_equal(sure.noise(players, tokens), parts)
    assert set(calls) == {3, 1}


def test_a_backend_that_shows_nothing_is_refused(place) -> None:
    class Engine:
        backend = "tensorrt"

    with pytest.raises(InputError, match="tensorrt.*does not show what it rounds.*--backend onnxruntime"):
        with exposed_paths(open_bundle(place[1]), Engine(), None):
            pass


def test_sessions_that_show_inputs_close(place) -> None:
    with ExposedRunner(open_bundle(place[1])) as runner:
        assert runner.open_graphs
    assert not runner.open_graphs
