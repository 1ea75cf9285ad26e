"""decoder.json of a stranger: no file outside, no size that the data file does not hold, no type that numpy lacks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from linmu.config import MMateConfig
from linmu.errors import BundleError
from linmu.formats.decoder_file import (
    TABLE,
    DecoderFile,
    WeightEntry,
    map_weights,
    open_decoder,
    read_decoder_file,
    write_decoder_file,
)
from linmu.formats.manifest import FileEntry
from tests.bundles import tiny_manifest

VALUES = np.arange(11 * 30, dtype=np.float32)
FORM = {
    "family": "llama",
    "mmate": MMateConfig().to_json(),
    "layers": 1,
    "hidden": 30,
    "heads": 6,
    "kv_heads": 2,
    "head_dim": 5,
    "vocab": 11,
    "eps": 1e-5,
    "tied": True,
    "qk_norm_eps": 1e-6,
    "deepstack": 0,
    "rope_axes": 1,
    "rope_scale": 1.0,
    "quantized": {},
    "state": "fp32",
}
MANIFEST = replace(tiny_manifest(), files={"weights.data": FileEntry("0" * 64, VALUES.nbytes)})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "secret.data").write_bytes(VALUES.tobytes())
    (tmp_path / "bundle" / "weights.data").write_bytes(VALUES.tobytes())
    (tmp_path / "bundle" / "other.data").write_bytes(VALUES.tobytes())
    weights = {TABLE: WeightEntry("float32", (11, 30), 0), "rope": WeightEntry("float16", (4,), 8)}
    write_decoder_file(tmp_path / "bundle", DecoderFile("weights.data", weights, FORM))
    return tmp_path / "bundle"


def edited(folder, *place, value):
    document = json.loads((folder / "decoder.json").read_text())
    parent = document
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    (folder / "decoder.json").write_text(json.dumps(document))


def test_what_was_written_is_mapped(folder):
    decoder, weights = open_decoder(folder, MANIFEST)
    np.testing.assert_array_equal(weights[TABLE], VALUES.reshape(11, 30))
    assert decoder.places == {TABLE: (0, 1320), "rope": (8, 8)} and weights["rope"].dtype == np.float16


@pytest.mark.parametrize(
    "name", ["../secret.data", "/etc/hostname", "other.data", "none.data", "", ".", "decoder.json", 3]
)
def test_data_is_a_listed_file_of_the_bundle(folder, name):
    edited(folder, "data", value=str(folder.parent / "secret.data") if name == "/etc/hostname" else name)
    with pytest.raises(BundleError):
        open_decoder(folder, MANIFEST)


def test_data_that_is_a_link_to_outside(folder):
    (folder / "weights.data").unlink()
    (folder / "weights.data").symlink_to("../secret.data")
    with pytest.raises(BundleError, match="a link that leaves"):
        map_weights(folder, read_decoder_file(folder))


@pytest.mark.parametrize(
    "entry",
    [
        ["float32", [11, 30], 4],
        ["float32", [11, 30], -4],
        ["float32", [11, 30], 2**63],
        ["float32", [2**40, 2**40], 0],
        ["float32", [-1, -330], 0],
        ["object", [1], 0],
        ["O", [1], 0],
        ["U8", [4], 0],
        ["float32", [11.0, 30], 0],
        ["float32", 330, 0],
        ["float32", [11, 30]],
        {"a": 1},
        "float32",
        ["float32", [1] * 99, 0],
        ["float16", [4], 1],
    ],
)
def test_weights_that_the_file_does_not_hold(folder, entry):
    for name in (TABLE, "rope"):
        edited(folder, "weights", name, value=entry)
    with pytest.raises(BundleError) as caught:
        open_decoder(folder, MANIFEST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab", 2**31),
        ("vocab", "11"),
        ("layers", 2),
        ("mmate", {"taps": 5}),
        ("family", "qwen2"),
        ("family", ["llama"]),
        ("quantized", {TABLE: {"weights": "int4"}}),
        ("quantized", []),
        ("tied", 1),
        ("eps", None),
        ("head_dim", True),
    ],
)
def test_a_form_that_is_not_the_manifests(folder, name, value):
    edited(folder, "form", name, value=value)
    with pytest.raises(BundleError):
        open_decoder(folder, MANIFEST)


def test_a_form_from_before_there_was_a_setting_has_its_default(folder):
    settings = {name: value for name, value in MANIFEST.model.mmate.to_json().items() if name != "rule"}
    edited(folder, "form", "mmate", value=settings)
    open_decoder(folder, MANIFEST)


def test_a_table_of_other_rows_is_no_vocabulary(folder):
    edited(folder, "weights", TABLE, value=["float32", [10, 33], 0])
    with pytest.raises(BundleError, match="token_embedding"):
        open_decoder(folder, MANIFEST)


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"data": 1}', "null"])
def test_documents_that_are_something_else(folder, text):
    (folder / "decoder.json").write_text(text)
    with pytest.raises(BundleError, match="decoder.json"):
        read_decoder_file(folder)
