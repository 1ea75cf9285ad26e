"""Answers behind kept states are the answers without them, to the bit: logits and every state tensor."""

from __future__ import annotations

import sys
from subprocess import run

import numpy as np
import pytest

import linmu
from linmu.demo import student_folder
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.prefixes import worth_keeping
from linmu.serving.state_folder import StateFolder
from tests.exports import export_bundle
from tests.paths import ROOT
from tests.runtimes.conftest import bundle_of  # noqa: F401 (a fixture)
from tests.serving.kept_server import PLENTY, Server, picture, talk
from tests.tiny import tiny_video


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "bundle"
    export_bundle(student_folder(), folder)
    return folder


@pytest.fixture(scope="module")
def demo(demo_folder):
    return Server(demo_folder)


def test_twenty_turns_with_three_pictures(demo):
    """Each turn costs what is new; pictures of earlier turns are neither decoded nor encoded again."""
    with PrefixCache(PLENTY) as cache:
        prefixes, total = demo.prefixes(cache), 0
        for turn in range(1, 21):
            inputs = demo.processor.encode(talk(turn))
            cached = demo.cached(prefixes, inputs)
            new, total = len(inputs.input_ids) - total, len(inputs.input_ids)
            assert turn == 1 or total - cached < new + 80
        assert cache.statistics().hits == 19 and cached > 0.9 * total


def test_pictures_in_a_known_prefix_are_not_touched(demo, monkeypatch):
    with PrefixCache(PLENTY) as cache:
        prefixes = demo.prefixes(cache)
        demo.read(prefixes, demo.processor.encode(talk(12)))
        monkeypatch.setattr("linmu.processing.media.prepare_image", lambda *_: pytest.fail("decoded"))
        monkeypatch.setattr(demo.runner, "encode", lambda *_: pytest.fail("encoded"))
        reading = demo.read(prefixes, demo.processor.encode(talk(13)))[2]
        assert reading.cached_tokens > 1000


def test_another_question_about_a_picture_and_another_picture(demo):
    """The pictures are known whatever is asked; with one pixel changed, they are other pictures."""
    four = [picture(seed) for seed in range(4)]  # the demo's have 16 tokens each
    with PrefixCache(PLENTY) as cache:
        prefixes = demo.prefixes(cache)
        asked = demo.processor.encode(talk(1, {0: four}))
        assert demo.cached(prefixes, asked) == 0
        other = talk(1, {0: four})
        other[0]["content"][-1]["text"] = "Is it red?"
        assert demo.cached(prefixes, demo.processor.encode(other)) > 64
        for index in range(4):
            changed = [item.copy() for item in four]
            changed[index][3, 5, 0] ^= 1
            found = demo.cached(prefixes, demo.processor.encode(talk(1, {0: changed})))
            assert (found > 0) == (index == 3)  # the first three fill a piece


def test_evicted_states_are_read_again(demo):
    with PrefixCache(2 * demo.runner.new_state().nbytes) as cache:
        prefixes = demo.prefixes(cache)
        for turn in (1, 2, 3, 7, 1, 2, 7, 8):
            demo.cached(prefixes, demo.processor.encode(talk(turn)))
        facts = cache.statistics()
        assert facts.evictions > 3 and facts.misses > 1 and facts.hits > 1 and facts.entries == 2


def test_without_leave_nothing_is_kept_or_looked_up(demo):
    with PrefixCache(PLENTY) as cache:
        prefixes, inputs = demo.prefixes(cache), demo.processor.encode(talk(3))
        demo.read(prefixes, inputs, keep=False)
        assert cache.statistics().entries == 0
        demo.read(prefixes, inputs)
        before = cache.statistics()
        assert demo.read(prefixes, inputs, keep=False)[2].cached_tokens == 0 and cache.statistics() == before
        assert demo.read(prefixes, inputs)[2].cached_tokens > 0


def test_other_threads_and_other_backends_miss(demo, demo_folder):
    two = Server(demo_folder, threads=2)
    inputs = demo.processor.encode(talk(2))
    with PrefixCache(PLENTY) as cache:
        demo.read(demo.prefixes(cache), inputs)
        assert two.cached(two.prefixes(cache), inputs) == 0
        other = demo.prefixes(cache)
        demo.runner.backend = "other"
        try:
            other = demo.prefixes(cache)
        finally:
            del demo.runner.backend
        assert demo.read(other, inputs)[2].cached_tokens == 0
        assert demo.read(demo.prefixes(cache), inputs)[2].cached_tokens > 0
        assert two.cached(two.prefixes(cache), demo.processor.encode(talk(3))) > 0  # two threads, to the bit


def test_a_session_reads_a_prompt_as_a_server_does(demo, demo_folder):
    """`linmu run` and a server give equal bits, with the server's state kept or not."""
    with PrefixCache(PLENTY) as cache, linmu.load(demo_folder, "onnxruntime", threads=1) as session:
        for turn in (3, 5):
            logits, states, _ = demo.read(demo.prefixes(cache), demo.processor.encode(talk(turn)))
            session.reset()
            assert np.array_equal(session.prefill(session.prepare(talk(turn))), logits)
            copy = session.state.copy()
            assert all(np.array_equal(copy.tensors[name], value) for name, value in states.items())


@pytest.mark.parametrize("settings", ({}, {"text_window": 8}), ids=("plain", "window"))
def test_text_models(settings, bundle_of):  # noqa: F811
    server = Server(bundle_of("llama", **settings))
    with PrefixCache(PLENTY) as cache:
        prefixes = server.prefixes(cache, max_piece_tokens=200)
        for turn in (1, 2, 6, 7):
            inputs = server.processor.encode(talk(turn, text_only=True))
            assert (server.cached(prefixes, inputs) > 0) == (turn > 1)
        document = server.processor.encode("word " * 300 + "one", raw=True)
        assert server.cached(prefixes, document) == 0
        other = server.processor.encode("word " * 300 + "two", raw=True)
        assert server.cached(prefixes, other) == (len(other.input_ids) - 1) // 200 * 200  # cut by the limit alone


@pytest.mark.parametrize("family", ("qwen2_5_vl",))
def test_a_clip_that_is_cut_by_the_limit(family, bundle_of):  # noqa: F811
    """Three rotary axes, a call for every grid frame: the rest of a clip goes on behind a state in its midst."""
    server = Server(bundle_of(family, max_span_frames=1))
    clip = {"type": "video", "video": tiny_video(frames=12)}
    with PrefixCache(PLENTY) as cache:
        prefixes = server.prefixes(cache, max_piece_tokens=40)
        first, second = ([{"role": "user", "content": [clip, {"type": "text", "text": text}]}] for text in ("a?", "b?"))
        assert server.cached(prefixes, server.processor.encode(first, video_fps=2.0)) == 0
        inputs = server.processor.encode(second, video_fps=2.0)
        plan = prefixes.plan(inputs)
        for count in range(1, len(plan.cuts)):  # as if just the first `count` states were known
            with PrefixCache(PLENTY) as some:
                found = cache.longest(plan.keys[:count])
                if found is None:
                    continue
                some.put(plan.keys[found[0]], found[1])
                assert server.cached(server.prefixes(some, max_piece_tokens=40), inputs) == plan.cuts[found[0]][1]


ELSEWHERE = """
import sys
from pathlib import Path
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.state_folder import StateFolder
from tests.serving.kept_server import PLENTY, Server, talk
server = Server(Path(sys.argv[1]))
with PrefixCache(PLENTY, StateFolder(Path(sys.argv[2]), server.bundle, PLENTY)) as cache:
    print(server.cached(server.prefixes(cache), server.processor.encode(talk(int(sys.argv[3])))))
"""


def test_another_process_goes_on_from_the_folder(demo, demo_folder, tmp_path):
    states = tmp_path / "states"
    with PrefixCache(PLENTY, StateFolder(states, demo.bundle, PLENTY)) as cache:
        assert demo.cached(demo.prefixes(cache), demo.processor.encode(talk(3))) == 0
    command = [sys.executable, "-c", ELSEWHERE, str(demo_folder), str(states), "4"]
    done = run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) > 200
    for path in states.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with PrefixCache(PLENTY, StateFolder(states, demo.bundle, PLENTY)) as cache:
        assert demo.cached(demo.prefixes(cache), demo.processor.encode(talk(4))) == 0
        assert cache.statistics().removed > 2
    with PrefixCache(0, StateFolder(states, demo.bundle, PLENTY)) as cache:  # nothing in memory
        assert demo.cached(demo.prefixes(cache), demo.processor.encode(talk(5))) > 200


def test_of_many_places_few_are_kept():
    assert worth_keeping(range(0)) == [] and worth_keeping(range(3, 4)) == [3]
    assert worth_keeping(range(100)) == [0, 36, 68, 84, 92, 96, 98, 99]
    assert worth_keeping(range(5, 8)) == [5, 6, 7]
