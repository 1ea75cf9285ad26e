"""Numbers of a manifest that no exporter writes, and manifests that were changed."""

from __future__ import annotations

import json

import pytest

from linmu.config import MMateConfig
from linmu.errors import BundleError, InputError
from linmu.families import get_family
from linmu.formats.bundle import open_bundle
from linmu.formats.manifest import OWN_HASH, own_hash
from linmu.layout.rules import PromptRules
from tests.bundles import tiny_bundle


def edited(folder, change, hashed=True):
    """The bundle with another manifest, which has the right hash: as a stranger would."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    if hashed:
        data[OWN_HASH] = own_hash(data)
    path.write_text(json.dumps(data))
    return folder


def model(**changes):
    return lambda data: data["model"].update(changes)


def swapped(data):
    first, second = data["state"]
    first["output"], second["output"] = second["output"], first["output"]


def larger(data):
    for graph in data["graphs"].values():
        for spec in graph["inputs"] + graph["outputs"]:
            if "conv" in spec["name"]:
                spec["shape"][1] = 1 << 30
    data["state"][0]["shape"][1] = 1 << 30
    data["state_bytes"] = 4 * ((50 << 30) + 6 * 5 * 7)


@pytest.mark.parametrize(
    "change",
    [
        model(mmate={"taps": 5}),
        model(name="tinx"),
        lambda data: data["created_with"].update(linmu="0.1.1"),
        lambda data: data["golden"].update({"golden/step.safetensors": "another step"}),
    ],
)
def test_every_number_is_covered_by_a_hash(tmp_path, change):
    folder = edited(tiny_bundle(tmp_path / "b"), change, hashed=False)
    for verify_hashes in (True, False):
        with pytest.raises(BundleError, match="manifest.json was changed; got sha256"):
            open_bundle(folder, verify_hashes)
    open_bundle(edited(folder, lambda data: None))


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        larger,
        model(family="gpt"),
        model(family=["llama"]),
        model(layers=0),
        model(layers=1 << 20),
        model(vocab_size=1 << 31),
        model(kv_heads=4),
        model(mmate={"taps": "4"}),
        model(mmate={"window_frames": 1 << 40}),
        model(mmate=[]),
        model(prompt_rules={"family": "llava"}),
        model(prompt_rules={"family": "llama", "merge_size": -1}),
        lambda data: data["generation"].update(max_new_tokens="9"),
        lambda data: data["generation"].update(eos_token_ids=[[2]]),
        lambda data: data.update(program={"piece_tokens": 0}),
        lambda data: data.update(vision={"kind": "tiles"}),
        lambda data: data["golden"].update({"golden/step.safetensors": 1}),
        lambda data: data["graphs"]["step"]["outputs"][0].update(shape=[1 << 20, 1 << 20, 11]),
    ],
)
def test_numbers_that_no_exporter_writes(tmp_path, change):
    folder = edited(tiny_bundle(tmp_path / "b"), change)
    with pytest.raises(BundleError, match="manifest.json") as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)


def first_version(data):
    data.update(format_version=1, tolerances={"onnxruntime": {"logits": 9.0}})


def test_a_bundle_of_the_first_version_is_refused_by_its_version(tmp_path):
    folder = edited(tiny_bundle(tmp_path / "b"), first_version)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert str(caught.value) == (
        "manifest.json: format_version; got 1; expected 2; "
        "fix: export the bundle again, or install the linmu that wrote it"
    )


def test_a_manifest_without_its_hash_is_refused(tmp_path):
    folder = edited(tiny_bundle(tmp_path / "b"), lambda data: data.pop(OWN_HASH), hashed=False)
    with pytest.raises(BundleError, match="no key 'manifest_sha256'; fix: export the bundle again"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"taps": 4.0},
        {"rope": 1},
        {"decay": ["query_head"]},
        {"norm_eps": float("nan")},
        {"norm_eps": "1"},
        {"min_half_life": 8.0, "max_half_life": 4.0},
        {"chunk_size": 0},
        {"text_window": -1},
        {"window_rows": 1 << 20},
        {"window_frames": 128, "window_rows": 128, "window_columns": 2},
        {"surprise": 1},
        [],
        None,
        "x",
    ],
)
def test_settings_of_other_types_and_sizes(settings):
    with pytest.raises(InputError):
        MMateConfig.from_json(settings)


@pytest.mark.parametrize(
    "rules",
    [
        {"family": ["llava"]},
        {"family": "llava", "tokens_per_tile": 2.5},
        {"family": "llava", "image_token_id": "4"},
        {"family": "llava", "tokens_per_second": float("inf")},
        {"family": "llava", "merge_size": 0},
        {},
        [],
        None,
    ],
)
def test_prompt_rules_of_other_types(rules):
    with pytest.raises(InputError):
        PromptRules.from_json(rules)
    with pytest.raises(InputError):
        get_family(rules)  # type: ignore[arg-type]
