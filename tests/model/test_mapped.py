"""A student that is too large to hold: the same numbers as the one held in float32, from weights that stay in files."""

from __future__ import annotations

import shutil

import pytest
import torch

from linmu.calibration.collect import calibrate
from linmu.conversion.probe import default_probe
from linmu.export.jetson.bundle import write_bundle
from linmu.export.onnx_bundle import write_bundle as write_onnx_bundle
from linmu.formats.model_files import read_config
from linmu.model import mapped
from linmu.model.folders import load_student
from linmu.model.mapped import MappedFiles, mapped_files, open_student, upcast
from linmu.reference.half_range import too_wide
from linmu.step.pack import decoder_form
from linmu.step.streamed import Spool, StreamedWeights, narrowest
from linmu.step.torch_ops import TorchOps
from linmu.verification.golden import LARGE_PARAMETERS, LEAST_NEW_TOKENS, LEAST_STEPS, lengths
from tests.folders import student_folder

STORED = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@pytest.fixture(scope="module", params=STORED)
def student(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    folder = student_folder("qwen2_5_vl", root)
    load_student(folder, STORED[request.param]).save_pretrained(
        root / "stored", save_original_format=False, max_shard_size="60KB"
    )
    for path in folder.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            shutil.copyfile(path, root / "stored" / path.name)
    return root / "stored"


@pytest.fixture
def large(monkeypatch):
    """Every student counts as large."""
    monkeypatch.setattr(mapped, "LARGE_PARAMETERS", 0)


def test_decoder_matrices_keep_their_stored_type(student, large):
    model, stored = open_student(student), getattr(torch, read_config(student)["dtype"])
    files = mapped_files(model)
    assert files is not None and len({id(x) for x in files.tensors.values()}) == len(files.tensors)
    for name, value in model.named_parameters():
        inside = "visual" not in name and value.ndim > 1
        assert value.dtype == (stored if inside else torch.float32), name
        assert (value.untyped_storage().data_ptr() == files.tensors[name].untyped_storage().data_ptr()) == inside, name


def test_a_small_student_is_held(student):
    assert mapped_files(open_student(student)) is None


def test_names_of_another_release_are_held_in_float32(student, large, monkeypatch):
    model = load_student(student)
    monkeypatch.setattr(MappedFiles, "__init__", lambda self, folder: setattr(self, "tensors", {}))
    found = open_student(student)
    assert mapped_files(found) is None and {x.dtype for x in found.parameters()} == {torch.float32}
    assert len(list(found.parameters())) == len(list(model.parameters()))


def test_forward_pass_is_bit_equal_and_leaves_nothing_behind(student, large):
    held, model = load_student(student), open_student(student)
    before = {name: (value.dtype, value.data_ptr()) for name, value in model.named_parameters()}
    inputs = default_probe(student, model.linmu_family, model._prompt_rules)
    with torch.no_grad(), upcast(model):
        found = model(**inputs).logits
    with torch.no_grad():
        assert torch.equal(found, held(**inputs).logits)
    assert {name: (value.dtype, value.data_ptr()) for name, value in model.named_parameters()} == before
    assert too_wide(model, student) == too_wide(held, student)


def test_a_pass_that_breaks_off_restores_the_weights(student, large):
    model = open_student(student)
    before = {name: value.data_ptr() for name, value in model.named_parameters()}

    def stop(*_):
        raise RuntimeError("stop")

    model.get_decoder().layers[1].mlp.register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stop"), upcast(model):
        model(**default_probe(student, model.linmu_family, model._prompt_rules))
    assert {name: value.data_ptr() for name, value in model.named_parameters()} == before


def test_streamed_weights_equal_the_held_ones_and_are_fresh_every_time(student, large):
    wanted = TorchOps(decoder_form(load_student(student))).weights
    form = decoder_form(open_student(student))
    ops = TorchOps(form)
    assert form.streamed and isinstance(ops.weights, StreamedWeights) and set(ops.weights) == set(wanted)
    assert len(ops.weights) == len(wanted) and "layers.0.down" in ops.weights and "layers.0.up" not in ops.weights
    for name, value in wanted.items():
        found = ops.weights[name]
        assert found.dtype == torch.float32 and torch.equal(found, value) and found.stride() == value.stride(), name
    assert ops.weights["layers.1.down"] is not ops.weights["layers.1.down"]
    assert ops.weights["norm"] is ops.weights["norm"]
    assert "streamed" not in form.to_json()
    ops.weights.clear()
    assert not ops.weights and ops.weights.get("norm") is None


def test_a_spool_gives_back_every_bit_and_leaves_no_file(tmp_path):
    values = {
        "half": torch.randn(3, 5).half().float(),
        "bfloat16": torch.randn(7, 2).bfloat16().float() * 2.0**30,
        "float": torch.randn(4, 6),
        "nan": torch.tensor([[float("nan"), 1.0]]),
        "tiny": torch.tensor([[2.0**-140]]),
    }
    spool = Spool(tmp_path)
    for name, value in values.items():
        assert spool.read(name) is None
        spool.write(name, value)
        assert torch.equal(spool.read(name).view(torch.int32), value.view(torch.int32)), name
    spool.write("turned", torch.randn(3, 4).T)
    assert spool.read("turned") is None and list(tmp_path.iterdir()) == []
    assert torch.equal(spool.read("float"), values["float"])
    assert [narrowest(values[name]).dtype for name in ("half", "bfloat16", "float", "nan")] == [
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]
    spool.close()
    assert spool.read("half") is None


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_bundle, {"preset": "fp16", "compile_check": False}),
        (write_onnx_bundle, {"preset": "none"}),
    ],
)
def test_the_same_bundle_byte_by_byte(student, tmp_path, monkeypatch, write, options):
    monkeypatch.setattr("linmu.verification.golden.ROLLOUT_STEPS", 5)
    monkeypatch.setattr("linmu.verification.golden.NEW_TOKENS", 3)
    wanted = write(student, tmp_path / "held", **options).manifest
    monkeypatch.setattr(mapped, "LARGE_PARAMETERS", 0)
    found = write(student, tmp_path / "streamed", **options).manifest
    assert found == wanted and any(name.startswith("golden/") for name in found.files)


@pytest.mark.parametrize("student", ["bfloat16"], indirect=True)
def test_the_same_record_and_the_same_quantized_bundle(student, tmp_path, monkeypatch):
    monkeypatch.setattr("linmu.verification.golden.ROLLOUT_STEPS", 5)
    monkeypatch.setattr("linmu.verification.golden.NEW_TOKENS", 3)
    records, manifests = [], []
    for place, limit in (("held", LARGE_PARAMETERS), ("streamed", 0)):
        monkeypatch.setattr(mapped, "LARGE_PARAMETERS", limit)
        record = tmp_path / f"{place}.safetensors"
        lengths = {"decode_tokens": 1, "long_tokens": 2, "state_tokens": 3}
        calibrate(student, record, samples=2, kept_rows=40, allow_random=True, **lengths)
        records.append(record.read_bytes())
        options = {"preset": "int4", "compile_check": False, "calibration": record}
        manifests.append(write_bundle(student, tmp_path / place, **options).manifest)
    assert records[0] == records[1] and manifests[0] == manifests[1]
    assert manifests[1].precision.weights == "int4"


@pytest.mark.parametrize("parameters", [1, LARGE_PARAMETERS])
def test_small_models_have_full_golden_vectors(parameters):
    assert lengths(parameters) == (256, 32)


def test_large_models_have_fewer_steps_but_some():
    sizes = [LARGE_PARAMETERS + 1, 500_000_000, 3_954_000_000, 10**11]
    assert [lengths(size) for size in sizes] == [(127, 15), (64, 8), (8, 4), (LEAST_STEPS, LEAST_NEW_TOKENS)]
