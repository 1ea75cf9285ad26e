from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from linmu.calibration import collect
from linmu.calibration.collect import calibrate
from linmu.calibration.error_curve import relative_errors
from linmu.calibration.observe import Book, ObservedRunner
from linmu.calibration.record import digest, read_record, record_of
from linmu.errors import InputError
from linmu.formats.safetensors_file import read_header
from linmu.formats.weights_hash import student_weights_hash
from linmu.model.folders import load_student
from tests.distill.samples import family_folder
from tests.folders import student_folder

FAST = {"samples": 4, "decode_tokens": 3, "long_tokens": 5, "state_tokens": 6, "kept_rows": 11}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("calibration")
    return student_folder("smolvlm", root), family_folder("smolvlm", root).folder


@pytest.fixture(scope="module")
def record(places, tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "calib.safetensors"
    student, data = places
    return path, calibrate(student, path, data=data, **FAST)


def test_the_record_holds_every_product_and_state(places, record) -> None:
    found, model = read_record(record[0]), load_student(places[0])
    with ObservedRunner(model, Book()) as runner:
        products = {
            name
            for name in runner.form.weights
            if name.rpartition(".")[2] in ("in_proj", "swin", "out_proj", "gate_up", "down")
        }
        layers = runner.form.layers
    assert {name for name in found.inputs if not name.startswith("vision.")} == products | {"head"}
    assert sum(name.startswith("vision.") for name in found.inputs) > 4
    wanted = {f"layers.{i}.{kind}" for i in range(layers) for kind in ("conv", "recurrent", "log_decay")}
    assert set(found.states) == wanted
    assert all((found.states[name] <= 0).all() for name in wanted if name.endswith("log_decay"))
    assert set(found.float16_states) == {f"layers.{i}.recurrent" for i in range(layers)}
    for curve in found.float16_states.values():
        errors = relative_errors(curve)
        assert list(errors) == [1, 2, 4]  # the last of six reads what was rounded five times
        assert all(0 < error < 0.1 for error in errors.values())
    assert found.complete and found.tokens["decode"] > FAST["long_tokens"]
    text = found.inputs["layers.0.in_proj"].count
    assert text == found.tokens["prefill"] + found.tokens["decode"]


def test_maxima_are_those_of_the_students_own_modules(places, record) -> None:
    """The last linear layer of the MLP, watched by a hook in transformers' forward of the prompts."""
    found, model = read_record(record[0]), load_student(places[0])
    largest = torch.zeros(found.inputs["layers.1.down"].channels)

    def watch(_, inputs):
        torch.maximum(largest, inputs[0].abs().flatten(0, -2).amax(0), out=largest)

    model.get_decoder().layers[1].mlp.down_proj.register_forward_pre_hook(watch)
    text = json.loads((places[1] / "data.jsonl").read_text().splitlines()[0])
    from linmu.processing.encode import model_processor

    ids = model_processor(places[0]).encode(text["prompt"]).input_ids
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids)[None])
    assert (largest.numpy() <= found.inputs["layers.1.down"].amax * (1 + 1e-5)).all()
    assert largest.max() > 0


def test_the_same_run_gives_the_same_bytes(places, record, tmp_path) -> None:
    calibrate(places[0], tmp_path / "again.safetensors", data=places[1], **FAST)
    assert (tmp_path / "again.safetensors").read_bytes() == record[0].read_bytes()


def test_a_killed_run_goes_on_to_the_same_bytes(places, record, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(collect, "SAVE_EVERY", 2)
    path = tmp_path / "calib.safetensors"

    def stop(text, done=0, total=None):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(places[0], path, data=places[1], progress=stop, **FAST)
    partial = tmp_path / "calib.partial.safetensors"
    assert read_record(partial).done == 2 and not path.exists()
    with pytest.raises(InputError, match="unfinished.*2 of 4"):
        record_of(partial, student_weights_hash(places[0]))
    said = []
    calibrate(places[0], path, data=places[1], progress=lambda *a: said.append(a[0]), **FAST)
    assert said[0] == "going on after 2 samples"
    assert path.read_bytes() == record[0].read_bytes() and not partial.exists()


def test_a_partial_record_of_other_settings_is_not_gone_on_with(places, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(collect, "SAVE_EVERY", 1)
    path = tmp_path / "calib.safetensors"
    shutil.copy(__file__, tmp_path / "calib.partial.safetensors")  # no record at all
    said = []
    calibrate(places[0], path, data=places[1], progress=lambda *a: said.append(a[0]), **{**FAST, "samples": 3})
    tail = f"last sample and {FAST['decode_tokens'] + FAST['long_tokens']} steps behind it"
    states = f"float16 states over {FAST['state_tokens']} tokens"
    assert said == ["samples", "samples", tail, "samples", states]


def test_other_versions_and_impossible_curves_are_refused(record, tmp_path) -> None:
    path = tmp_path / "calib.safetensors"
    tensors, metadata = load_file(record[0]), read_header(record[0]).metadata
    save_file(tensors, path, {**metadata, "format_version": "5"})
    with pytest.raises(InputError, match="another version; got 5; expected 4; fix: calibrate again"):
        read_record(path)
    name = "float16_states/layers.0.recurrent"
    short = {**tensors, name: tensors[name][:3].copy()}
    save_file(short, path, {**metadata, "sha256": digest(metadata, short)})
    with pytest.raises(InputError, match=r"is damaged; got error curve of shape \(3, 2\)"):
        read_record(path)


def test_random_data_must_be_asked_for(places, tmp_path) -> None:
    path = tmp_path / "calib.safetensors"
    with pytest.raises(InputError, match="no calibration data.*--allow-random"):
        calibrate(places[0], path, **FAST)
    found = calibrate(places[0], path, allow_random=True, **FAST)
    assert found.origin.data_hash == "random" and any(name.startswith("vision.") for name in found.inputs)


def test_a_record_belongs_to_its_student(record) -> None:
    with pytest.raises(InputError, match="another student"):
        record_of(record[0], "0" * 64)


def test_broken_records_are_refused_in_a_line(record, tmp_path) -> None:
    whole = record[0].read_bytes()
    for name, content in {"cut": whole[:-40], "empty": b"", "noise": b"x" * 100}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError):
            read_record(path)
    save_file({"a": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a calibration record"):
        read_record(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="NAME.safetensors"):
        calibrate(tmp_path, tmp_path / "calib.bin", allow_random=True)


def test_data_without_a_picture_calibrate_no_vision_tower(places, tmp_path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    lines = [{"prompt": f"Say {word}.", "answer": word} for word in ("yes", "no")]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="hold no picture"):
        calibrate(places[0], tmp_path / "calib.safetensors", data=folder, **FAST)
    assert not (tmp_path / "calib.safetensors").exists()


def test_values_that_are_not_finite_name_the_sample(places, tmp_path) -> None:
    broken = tmp_path / "student"
    shutil.copytree(places[0], broken)
    model = load_student(broken)
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(broken, save_original_format=False)
    with pytest.raises(InputError, match=r"data.jsonl:1.*not finite.*layers\.1\."):
        calibrate(broken, tmp_path / "calib.safetensors", data=places[1], **FAST)


def test_pictures_that_make_nothing_move_are_refused(places, tmp_path) -> None:
    """A student whose vision tower is all zeros."""
    dead = tmp_path / "student"
    shutil.copytree(places[0], dead)
    model = load_student(dead)
    with torch.no_grad():
        for parameter in model.model.vision_model.parameters():
            parameter.zero_()
    model.save_pretrained(dead, save_original_format=False)
    with pytest.raises(InputError, match="constant activations at vision"):
        calibrate(dead, tmp_path / "calib.safetensors", data=places[1], **FAST)


def test_an_empty_folder_and_a_wrong_student(places, tmp_path) -> None:
    with pytest.raises(InputError, match="not a data folder"):
        calibrate(places[0], tmp_path / "c.safetensors", data=tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError):
        calibrate(tmp_path, tmp_path / "c.safetensors", allow_random=True)
