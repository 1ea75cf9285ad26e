from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmu.config import MMateConfig
from linmu.errors import BundleError
from linmu.formats.manifest import FileEntry, Manifest, model_hash, state_bytes
from linmu.layout.rules import PromptRules
from linmu.specs import TensorSpec
from tests.bundles import CONV_FIRST, CONV_LAST, RECURRENT, step_graph, tiny_manifest


def test_round_trip_through_json():
    manifest = tiny_manifest(files={"step.onnx": FileEntry("0" * 64, 5)})
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again == manifest


PROFILE = {"min": [1, 1], "opt": [2, 1], "max": [2, 1]}
PROFILES = [
    ({"prefill": {}}, "no graph"),
    ({"step": {"input_ids": {"min": [1, 1], "opt": [1, 1]}}}, "no key 'max'"),
    ({"step": {"other": PROFILE}}, "profiles.step.other"),
    ({"step": {"input_ids": PROFILE | {"min": [1]}}}, "shapes"),
    ({"step": {"input_ids": PROFILE | {"min": [3, 1]}}}, "rising sizes of batch"),
    ({"step": {"input_ids": PROFILE | {"max": [2, 4]}}}, "rising sizes of 1"),
    ({"step": {"input_ids": PROFILE | {"max": [True, 1]}}}, "rising sizes"),
]


def test_profiles_survive_json_and_stand_only_where_there_are_some():
    manifest = tiny_manifest(profiles={"step": {"input_ids": PROFILE}})
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest
    assert "profiles" not in tiny_manifest().to_json()


def with_weights(weights):
    files = {"weights.data": FileEntry("0" * 64, 200), "step.onnx": FileEntry("0" * 64, 9)}
    return tiny_manifest(graph_weights=weights, files=files)


def test_weights_of_graphs_survive_json_and_stand_only_where_there_are_some():
    manifest = with_weights({"step": {"weights.data": 200}})
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert "graph_weights" not in tiny_manifest().to_json()
    assert Manifest.from_json(with_weights({"step": {}}).to_json()).graph_weights == {"step": {}}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"other": {}}, "graph_weights.other"),
        ({"step": []}, "graph_weights.step"),
        ({"step": {"other.data": 1}}, "other.data"),
        ({"step": {"step.onnx": 1}}, "a data file"),
        *(({"step": {"weights.data": n}}, "1 to 200 bytes") for n in (201, 10**400, 0, -1, 1.0, True, None, "1", [])),
    ],
)
def test_weights_that_fit_no_file_are_refused(weights, message):
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.from_json(with_weights(weights).to_json())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(("profiles", "message"), PROFILES)
def test_a_profile_that_fits_no_graph_is_refused(profiles, message):
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(tiny_manifest(profiles=profiles).to_json())


def test_state_bytes_count_one_sequence():
    assert state_bytes((CONV_LAST, RECURRENT)) == 4 * (3 * 50 + 6 * 5 * 7)


CHANGES = [
    (("format",), "other", "format"),
    (("format_version",), 1, "format_version; got 1; expected 2; fix: export the bundle again"),
    (("tolerances",), {"torch": {"logits": 0.5}}, "unknown key 'tolerances'"),
    (("format_version",), True, "format_version"),
    (("surprise",), 1, "unknown key 'surprise'"),
    (("model", "surprise"), 1, "unknown key 'surprise'"),
    (("model", "mmate"), {"surprise": 1}, "^manifest.json: unknown M-MATE setting; got surprise"),
    (("model", "mmate"), {"taps": "4"}, "^manifest.json: mmate.taps"),
    (("model", "mmate"), {"rule": "gated_delta"}, "model.mmate.rule; got gated_delta; expected gated; fix: install"),
    (("model", "mmate"), None, "model.mmate"),
    (("model", "prompt_rules"), {}, "^manifest.json: prompt rules without a family"),
    (("model", "prompt_rules"), {"family": "llama", "merge_size": 0}, "^manifest.json: prompt rule merge_size"),
    (("model", "layers"), "3", "model.layers"),
    (("model", "layers"), True, "model.layers"),
    (("model", "layers"), -1, "model.layers"),
    (("backends",), [1], "backends"),
    (("state_bytes",), 3, "state_bytes"),
    (("state", 0, "axes"), ["batch", "taps", "taps"], r"state\[0\].axes"),
    (("state", 0, "init"), "ones", "init"),
    (("state", 0, "name"), "past.0.other", "unknown state"),
    (("state", 0, "dtype"), "float31", "dtype"),
    (("state", 0, "shape"), ["batch", 50, 3], "graphs.step"),
    (("graphs", "step", "inputs", 0, "shape"), [1.5], "shape"),
    (("graphs", "step", "inputs", 0, "surprise"), 0, "surprise"),
    (("graphs", "step", "inputs", 1, "name"), "input_ids", "twice"),
    (("files", "step.onnx"), {"sha256": "A" * 64, "bytes": 1}, "sha256"),
    (("files", "step.onnx"), {"sha256": "a" * 64, "bytes": -1}, "bytes"),
]


@pytest.mark.parametrize(("path", "value", "message"), CHANGES)
def test_each_contradiction_is_named(path, value, message):
    data = copy.deepcopy(tiny_manifest().to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BundleError, match=message) as caught:
        Manifest.from_json(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["mmate", "prompt_rules", "family", "parameters"])
def test_every_fact_of_the_model_is_needed(key):
    data = tiny_manifest().to_json()
    del data["model"][key]
    with pytest.raises(BundleError, match=f"model; got no key '{key}'"):
        Manifest.from_json(data)


def test_settings_and_rules_are_read_into_their_own_types():
    model = tiny_manifest().model
    smaller = replace(model, mmate=MMateConfig(taps=3), prompt_rules=PromptRules("llama", image_token_id=7))
    data = json.loads(json.dumps(tiny_manifest(model=smaller).to_json()))
    assert data["model"]["mmate"] == MMateConfig(taps=3).to_json()
    assert data["model"]["prompt_rules"]["image_token_id"] == 7
    assert Manifest.from_json(data).model == smaller


@pytest.mark.parametrize("key", [key for key in tiny_manifest().to_json() if key != "format"])
def test_every_key_is_needed(key):
    data = tiny_manifest().to_json()
    del data[key]
    with pytest.raises(BundleError, match=key):
        Manifest.from_json(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from([key for key in tiny_manifest().to_json()]), value=JSON)
def test_any_value_is_read_or_refused_in_one_line(key, value):
    data = {**tiny_manifest().to_json(), key: value}
    try:
        Manifest.from_json(data)
    except BundleError as error:
        assert "\n" not in str(error)


def test_model_hash_follows_weights_and_states_not_axis_order():
    files = {"a.data": FileEntry("1" * 64, 1), "README.md": FileEntry("2" * 64, 1)}
    base = tiny_manifest(files=files)
    assert model_hash(base) == model_hash(replace(base, files={**files, "README.md": FileEntry("3" * 64, 1)}))
    assert model_hash(base) != model_hash(replace(base, files={**files, "a.data": FileEntry("3" * 64, 1)}))
    permuted = tiny_manifest((CONV_FIRST, RECURRENT), files=files)
    assert model_hash(base) == model_hash(permuted)
    other = replace(CONV_LAST, shape=("batch", 4, 50))
    assert model_hash(base) != model_hash(tiny_manifest((other, RECURRENT), files=files))
    known = replace(base, model=replace(base.model, weights_hash="5" * 64))
    assert model_hash(known) == model_hash(replace(known, files={"b.pte": FileEntry("3" * 64, 1)}))


def test_step_graph_must_carry_every_state():
    graph = step_graph()
    transposed = TensorSpec("present.0.recurrent", "float32", ("batch", 6, 7, 5))
    wrong = replace(graph, outputs=(*graph.outputs[:-1], transposed))
    with pytest.raises(BundleError, match="graphs.step"):
        Manifest.from_json(tiny_manifest(graphs={"step": wrong}).to_json())
