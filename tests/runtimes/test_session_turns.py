"""Conversations in real sessions: state files, errors in their midst, threads, and how answers end."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import linmu
from linmu.errors import InputError, StateError
from linmu.runtimes.backends import available_backends
from tests.runtimes.sessions import gap, media, says
from tests.tiny import tiny_image


@pytest.mark.parametrize("family", ("llama", "smolvlm"))
def test_three_turns_and_a_saved_state_are_one_conversation(family, bundle_of, tmp_path):
    """Through prefills, steps, a state file and another session: the same logits as the whole read at once."""
    with linmu.load(bundle_of(family), threads=1) as session, linmu.load(bundle_of(family), threads=1) as other:
        first = session.generate("What?", **media(family), **says(session, "It is blue."), system="Be brief.")
        assert first.text == "It is blue." and first.finish_reason == "stop" and first.notice is None
        session.generate("And now?", **says(session, "red", ended=False))
        session.state.save(tmp_path / "state")
        other.state.load(tmp_path / "state")
        assert other.messages == session.messages and len(other.messages) == 5
        says(other, "")
        turn = other.prepare("three?")
        logits = other.prefill(turn).copy()
        talk = [*session.messages, {"role": "user", "content": "three?"}]
        if family == "smolvlm":
            talk[1] = {**talk[1], "content": [{"type": "image"}, {"type": "image"}, talk[1]["content"][-1]]}
        whole = session.processor.encode(talk, **media(family))
        session.reset()
        assert len(whole.input_ids) == other.state.tokens
        assert gap(session.prefill(whole), logits) < 1e-4 and session.state.position == other.state.position
        with pytest.raises(InputError, match="empty"):
            other.generate(" ")


def test_a_prompt_may_be_read_without_an_answer(bundle_of, tmp_path):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        answer = session.generate("one?", max_new_tokens=0)
        assert (answer.text, answer.token_ids, answer.finish_reason) == ("", (), "length")
        assert session.state.tokens == answer.prompt_tokens and answer.timings["ttft_ms"] > 0
        for bad in (-1, 1.5, True, "3"):
            with pytest.raises(InputError, match="max_new_tokens"):
                session.generate("x", max_new_tokens=bad)


def test_stop_strings_end_an_answer_and_are_not_in_it(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        options = {**says(session, "one two\nUser: three"), "stop": ["nothing", "\nUser"]}
        answer = session.generate("x", **options)
        assert answer.text == "one two" and answer.finish_reason == "stop"
        assert session.messages[-1]["content"] == "one two"
        pieces = list(session.stream("y", **{**says(session, "a\nUse", ended=False), "stop": "\nUser"}))
        assert "".join(map(str, pieces)) == "a\nUse" and pieces[-1].finish_reason == "length"
        with pytest.raises(InputError, match="stop"):
            session.generate("x", stop=[""])


def test_a_stream_says_everything_that_generate_says(bundle_of):
    """A piece for every token; only the last one says why the answer ended, and text held back comes at the end."""
    names = {"preprocess_ms", "ttft_ms", "decode_ms", "tokens_per_s"}
    with linmu.load(bundle_of("llama"), threads=1) as session:
        for text, ended, options in (
            ("It is 世界.", True, {}),
            ("a\nUse", False, {"stop": "\nUser"}),
            ("one two\nUser: three", True, {"stop": "\nUser"}),
            ("", True, {}),
            ("ab", False, {"max_new_tokens": 0}),
        ):
            answers = []
            for ask in (session.stream, session.generate):
                session.reset()
                answers.append(ask("What?", **{**says(session, text, ended), **options}))
                if ask == session.stream:
                    answers[0] = list(answers[0])
            pieces, whole = answers
            assert "".join(map(str, pieces)) == whole.text == text.split("\nUser")[0] * bool(whole.token_ids)
            assert tuple(piece.token_id for piece in pieces if piece.token_id is not None) == whole.token_ids
            assert len(pieces) == max(len(whole.token_ids), 1)
            assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]
            for piece in pieces:
                assert piece.prompt_tokens == whole.prompt_tokens and piece.notice == whole.notice
                assert piece.timings.keys() == whole.timings.keys() == names
            times = [piece.timings for piece in pieces]
            assert len({time["ttft_ms"] for time in times}) == 1 and times[0]["ttft_ms"] > times[0]["preprocess_ms"] > 0
            assert all(a["decode_ms"] <= b["decode_ms"] for a, b in zip(times, times[1:], strict=False))


def test_a_stream_may_be_left_where_a_stop_string_ended_it(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        for piece in session.stream("x", **says(session, "one\nUser: two"), stop="\nUser"):
            if piece.finish_reason:
                break
        assert session.messages[-1]["content"] == "one"


def save_state_file(path, tensors, metadata) -> None:
    """A state file with these metadata and the hash that belongs to them (docs/bundle.md)."""
    said = {name: value for name, value in metadata.items() if name != "sha256"}
    digest = sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].tobytes())
    save_file(tensors, path, {**said, "sha256": digest.hexdigest()})


def test_a_refused_state_changes_nothing(bundle_of, tmp_path):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        session.generate("one?", **says(session, "a"))
        session.state.save(tmp_path / "good")
        with safe_open(tmp_path / "good", "numpy") as file:
            metadata = file.metadata()
        tensors = load_file(tmp_path / "good")
        session.generate("two?", **says(session, "b"))
        before = session.state.copy()
        for name, value in {
            "pending": "[-1]",
            "position": '"x"',
            "conversation": "[1]",
            "tokens": "-3",
            "conversation ": json.dumps({**json.loads(metadata["conversation"]), "answer": [10**9]}),
        }.items():
            save_state_file(tmp_path / "bad", tensors, {**metadata, name.strip(): value})
            with pytest.raises(StateError):
                session.state.load(tmp_path / "bad")
            after = session.state.copy()
            assert replace(after, tensors={}) == replace(before, tensors={})
            assert all(np.array_equal(after.tensors[name], value) for name, value in before.tensors.items())
        save_state_file(tmp_path / "bare", tensors, {k: v for k, v in metadata.items() if k != "conversation"})
        session.state.load(tmp_path / "bare")  # as a session whose conversation is not known writes it
        assert session.messages == [] and session.prepare("two?").text.startswith("\n<|im_start|>user")


def test_a_prompt_of_another_moment_is_refused(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        first, second = session.prepare("one?"), session.prepare("two?")
        session.prefill(first)
        with pytest.raises(InputError, match="another moment"):
            session.prefill(second)


def test_one_thread_at_a_time(bundle_of):
    """A stream that is being read keeps other threads out; who reads it may leave it, and it says so."""
    with linmu.load(bundle_of("llama"), threads=1) as session, ThreadPoolExecutor(1) as pool:
        stream = session.stream("one?", **says(session, "some words"))
        assert next(stream) and pool.submit(next, stream).result()  # whichever thread reads it
        for call in (session.reset, lambda: session.generate("two?"), lambda: session.step(5), session.state.copy):
            with pytest.raises(InputError, match="another thread"):
                call()
        pool.submit(list, stream).result()
        session.generate("two?", max_new_tokens=1)
        stream = session.stream("three?", **says(session, "some words"))
        next(stream)
        session.generate("four?", max_new_tokens=1)
        with pytest.raises(InputError, match="cannot go on"):
            next(stream)


def test_many_threads_get_an_answer_or_a_refusal(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        expected = session.generate("one?", max_new_tokens=4).token_ids
        results = []

        def ask(_):
            try:
                session.reset()
                results.append(session.generate("one?", max_new_tokens=4))
            except InputError as error:
                results.append(str(error))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(24)))
        refused = [result for result in results if isinstance(result, str)]
        assert all("another thread" in text or "cannot go on" in text for text in refused) and len(results) == 24
        first = [r for r in results if not isinstance(r, str) and r.prompt_tokens == results_of_one(session)]
        assert first and all(result.token_ids == expected for result in first)


def results_of_one(session) -> int:
    """Prompt tokens of a first turn."""
    return len(session.processor.encode("one?").input_ids)


def test_a_closed_session_says_so(bundle_of):
    session = linmu.load(bundle_of("llama"), threads=1)
    session.close()
    session.close()
    for call in (
        lambda: session.generate("x"),
        session.reset,
        lambda: session.step(1),
        session.state.copy,
        lambda: session.prepare("x"),
        lambda: session.state.save("nowhere"),
    ):
        with pytest.raises(InputError, match="closed"):
            call()


@pytest.mark.parametrize("backend", ("onnxruntime", "torch"))
def test_a_relative_bundle_and_another_folder_later(backend, bundle_of, tmp_path, monkeypatch):
    path = bundle_of("smolvlm")
    monkeypatch.chdir(path.parent)
    with linmu.load(path.name, backend, threads=1) as session:
        monkeypatch.chdir(tmp_path)
        answer = session.generate("What?", **media("smolvlm"), max_new_tokens=2)
        assert len(answer.token_ids) and session.bundle.folder.is_absolute()
        assert available_backends(session.bundle)


def test_paths_of_any_kind(bundle_of, tmp_path):
    class Own:
        def __init__(self, path):
            self.path = path

        def __fspath__(self):
            return str(self.path)

    tiny_image(1).save(tmp_path / "a.png")
    with linmu.load(Own(bundle_of("smolvlm")), threads=1) as session:
        session.generate("What?", Own(tmp_path / "a.png"), max_new_tokens=1)
        session.state.save(Own(tmp_path / "state"))
        session.state.load(Own(tmp_path / "state"))
    with pytest.raises(InputError, match="a bundle"):
        linmu.load(3)
