from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from linmu.errors import BundleError, InputError
from linmu.runtimes.tensorrt.engine_files import (
    Engine,
    EngineParts,
    engine_name,
    engine_problem,
    read_index,
    remove_stale,
    write_index,
)
from linmu.runtimes.tensorrt.forecast import forecast_build, require_memory

RANGES = {"tokens": {"min": 1, "opt": 5, "max": 9}}
PARTS = EngineParts("g" * 64, {"weights.data": "d" * 64}, "tensorrt", "10.3.0", "Orin", "8.7", RANGES)
OTHER = {
    "graph": "h" * 64,
    "data": {"weights.data": "e" * 64},
    "flavour": "tensorrt_rtx",
    "version": "10.13.0",
    "gpu": "Thor",
    "capability": "11.0",
    "ranges": {"tokens": {"min": 1, "opt": 5, "max": 10}},
    "level": 2,
    "settings": 99,
}


def engine(folder, parts=PARTS, graph="step", content=b"plan") -> Engine:
    (folder / "engines").mkdir(exist_ok=True)
    name = engine_name(graph, parts)
    (folder / "engines" / name).write_bytes(content)
    return Engine(graph, name, len(content), parts, 1.5, 7)


def test_every_part_is_in_the_key():
    assert set(OTHER) == {field.name for field in fields(EngineParts)}
    keys = {PARTS.key} | {replace(PARTS, **{name: value}).key for name, value in OTHER.items()}
    assert len(keys) == len(OTHER) + 1
    for name, value in OTHER.items():
        assert PARTS.changes(replace(PARTS, **{name: value})) == [name]


def test_index_is_read_back(tmp_path):
    assert read_index(tmp_path) == {}
    one, two = engine(tmp_path), engine(tmp_path, replace(PARTS, graph="f" * 64), "prefill")
    write_index(tmp_path, [one, two])
    assert read_index(tmp_path) == {"step": one, "prefill": two}
    assert read_index(tmp_path)["step"].ranges["tokens"].max == 9


def test_what_makes_an_engine_unusable(tmp_path):
    one = engine(tmp_path)
    assert engine_problem(tmp_path, one, PARTS) is None
    assert engine_problem(tmp_path, None, PARTS) == "was never built"
    changed = replace(PARTS, version="10.4.0", gpu="Thor")
    assert engine_problem(tmp_path, one, changed) == "was built for another version and another gpu"
    (tmp_path / "engines" / one.file).write_bytes(b"pla")
    assert engine_problem(tmp_path, one, PARTS) == "is damaged"
    (tmp_path / "engines" / one.file).unlink()
    assert engine_problem(tmp_path, one, PARTS) == "is missing"


def test_stale_engines_and_leftovers_go_and_nothing_else(tmp_path):
    kept, stale = engine(tmp_path), engine(tmp_path, replace(PARTS, gpu="Thor"))
    folder = tmp_path / "engines"
    for name in (".step.x.engine.ab12.partial", "timing.cache", "notes.txt"):
        (folder / name).touch()
    assert sorted(remove_stale(tmp_path, [kept])) == sorted([".step.x.engine.ab12.partial", stale.file])
    assert sorted(path.name for path in folder.iterdir()) == sorted([kept.file, "timing.cache", "notes.txt"])


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_index_is_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, [engine(folder)])
    path = folder / "engines" / "engines.json"
    document = json.loads(path.read_text())
    entry = document["engines"]["step"]
    key = data.draw(st.sampled_from(sorted(entry["parts"]) + ["file"]))
    place = entry if key == "file" else entry["parts"]
    value = data.draw(st.sampled_from([None, 5, "../../x.engine", [], {"tokens": 3}, "y"]))
    assume(value != place[key])
    place[key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="engines.json cannot be read") as caught:
        read_index(folder)  # the file's name holds the key: no part can be changed without it
    assert "\n" not in str(caught.value)


def test_forecast_and_refusal():
    found = forecast_build(10 * 2**30, 64 * 2**30)
    assert found.fits and 40 * 2**30 < found.peak_bytes < 41 * 2**30
    assert found.peak_bytes + found.workspace_bytes < 64 * 2**30
    require_memory("prefill", found)
    with pytest.raises(InputError, match="prefill engine would run out of memory; got 32.0 GiB available"):
        require_memory("prefill", forecast_build(10 * 2**30, 32 * 2**30))
