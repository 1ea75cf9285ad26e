"""Sessions on real tiny bundles: pieces, states across backends, conversations, sampling, what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import linmu
from linmu.errors import InputError, StateError
from linmu.export.onnx_bundle import export_bundle
from linmu.processing import ModelInputs
from linmu.runtimes.backends import available_backends, open_runner
from linmu.runtimes.sampling import Sampling
from tests.folders import student_folder
from tests.tiny import tiny_image, tiny_video

FAMILIES = ("llama", "smolvlm", "qwen3_vl")


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    @cache
    def make(family: str, plain: bool = False, **settings):
        root = tmp_path_factory.mktemp(family)
        folder = student_folder(family, root, **settings)
        export_bundle(folder, root / "bundle", plain_ops=plain)
        return root / "bundle"

    return make


def media(family: str) -> dict:
    return {} if family == "llama" else {"images": [tiny_image(1), tiny_image(2)]}


def gap(actual, expected) -> float:
    return float(np.abs(actual - expected).max() / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_of_any_size_are_one_prompt(family, bundle_of):
    with linmu.load(bundle_of(family), threads=1) as session:
        inputs = session.prepare("What is here? And what is there?", **media(family))
        whole = session.prefill(inputs, max_piece_tokens=10**6).copy()
        state = session.state.copy()
        for size in (1, 7, 32):
            session.reset()
            assert gap(session.prefill(inputs, max_piece_tokens=size), whole) < 1e-4
            assert session.state.tokens == state.tokens and session.state.position == state.position
            for name, value in session.state.copy().tensors.items():
                assert np.abs(value - state.tensors[name]).max() <= 1e-4 * np.abs(state.tensors[name]).max() + 1e-7, (
                    name
                )


@pytest.mark.parametrize("plain", (False, True), ids=("fused", "plain"))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_saved_in_one_backend_goes_on_in_another(family, plain, bundle_of, tmp_path):
    path = bundle_of(family, plain)
    with linmu.load(path, "onnxruntime", threads=1) as one, linmu.load(path, "torch", threads=1) as other:
        inputs = one.prepare("hello there", **media(family))
        for source, target in ((one, other), (other, one)):
            source.reset()
            token = int(source.prefill(inputs).argmax())
            file = tmp_path / f"{source.runner.backend}.safetensors"
            source.state.save(file)
            expected = [source.step(token).copy() for _ in range(5)]
            target.state.load(file)
            assert target.state.tokens == len(inputs.input_ids)
            for wanted in expected:
                assert gap(target.step(token), wanted) < 1e-4


def test_the_state_is_constant_and_can_be_put_back(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        size = session.state.nbytes
        session.prefill(session.prepare("abc"))
        before = session.state.copy()
        first = [session.step(token).copy() for token in (5, 6, 7)]
        session.state.restore(before)
        assert all(np.array_equal(session.step(token), wanted) for token, wanted in zip((5, 6, 7), first, strict=True))
        assert session.state.nbytes == size == sum(value.nbytes for value in before.tensors.values())


@pytest.mark.parametrize("family", ("smolvlm", "qwen3_vl"))
def test_a_conversation_goes_on_without_reading_again(family, bundle_of):
    """Two turns through the state = one prompt that holds both turns and the answer between them."""
    with linmu.load(bundle_of(family), threads=1) as session:
        answer = session.generate("What is this?", **media(family), max_new_tokens=4)
        pending, seen = session.state.pending, session.state.tokens
        assert seen == answer.prompt_tokens + 3 and pending == answer.token_ids[-1:]
        second = session.prepare("and now?")
        logits = session.prefill(second).copy()
        position = session.state.position
        session.reset()
        first = session.prepare("What is this?", **media(family))
        ids = np.concatenate([first.input_ids, answer.token_ids, second.input_ids])
        together = ModelInputs(ids, "", first.media, first.vision_calls)
        assert gap(session.prefill(together), logits) < 1e-4
        assert session.state.position == position


class Scripted(Sampling):
    """Says what it is told, whatever the model thinks."""

    def generator(self):
        return iter(self.seed)

    def choose(self, logits, generator):
        return next(generator)


def says(session, text: str, ended: bool = True) -> dict:
    """Options of an answer with this text, and with the template's end of turn behind it."""
    tokenizer = session.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    end = tokenizer.token_to_id("<|im_end|>")
    tokens = replace(session.processor.settings.tokens, eos_token_ids=(end,))
    settings = replace(session.processor.settings, tokens=tokens)
    session.processor = replace(session.processor, settings=settings)
    ids += [end] * ended
    return {"sampling": Scripted(seed=ids), "max_new_tokens": len(ids)}


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
        assert "".join(pieces) == "a\nUse"
        with pytest.raises(InputError, match="stop"):
            session.generate("x", stop=[""])


def test_an_error_in_the_midst_of_a_prompt_leaves_the_state_as_it_was(bundle_of, monkeypatch):
    """Every piece runs in the real runner; the third is made to fail behind it, when its state has moved already."""
    with linmu.load(bundle_of("llama"), threads=1) as session:
        for begun in (False, True):
            session.reset()
            if begun:
                session.generate("before", **says(session, "so", ended=False))
            before, count, real = session.state.copy(), [], session.runner.prefill

            def failing(piece, state, count=count, real=real):
                logits = real(piece, state)
                count.append(len(piece.inputs_embeds))
                if len(count) == 3:
                    raise KeyboardInterrupt
                return logits

            inputs = session.prepare("a prompt of several pieces, each of a few tokens")
            with monkeypatch.context() as patch:
                patch.setattr(session.runner, "prefill", failing)
                with pytest.raises(KeyboardInterrupt):
                    session.prefill(inputs, max_piece_tokens=7)
            after = session.state.copy()
            assert len(count) == 3 and replace(after, tensors={}) == replace(before, tensors={})
            assert all(np.array_equal(after.tensors[name], value) for name, value in before.tensors.items())
            whole = session.prefill(inputs, max_piece_tokens=7).copy()
            session.state.restore(before)
            assert np.array_equal(session.prefill(inputs, max_piece_tokens=7), whole)


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
            "pending": "[-1]", "position": '"x"', "conversation": "[1]", "tokens": "-3",
            "conversation ": json.dumps({**json.loads(metadata["conversation"]), "answer": [10**9]}),
        }.items():  # fmt: skip
            save_file(tensors, tmp_path / "bad", {**metadata, name.strip(): value})
            with pytest.raises(StateError):
                session.state.load(tmp_path / "bad")
            after = session.state.copy()
            assert replace(after, tensors={}) == replace(before, tensors={})
            assert all(np.array_equal(after.tensors[name], value) for name, value in before.tensors.items())
        save_file(tensors, tmp_path / "old", {k: v for k, v in metadata.items() if k != "conversation"})
        session.state.load(tmp_path / "old")  # as an older linmu wrote it
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
        "".join(pool.submit(list, stream).result())
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
    for call in (lambda: session.generate("x"), session.reset, lambda: session.step(1), session.state.copy,
                 lambda: session.prepare("x"), lambda: session.state.save("nowhere")):  # fmt: skip
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


@pytest.mark.parametrize("family", ("smolvlm", "qwen3_vl"))
def test_a_video_is_read(family, bundle_of):
    with linmu.load(bundle_of(family), threads=1) as session:
        try:
            answer = session.generate("What moves?", video=tiny_video(0, 6), max_new_tokens=3)
        except InputError as error:  # a processor without video settings says so
            assert "video" in str(error)
        else:
            assert len(answer.token_ids) <= 3


def test_sampling_is_repeatable_and_greedy_is_the_default(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:

        def answer(**options):
            session.reset()
            return session.generate("go", max_new_tokens=12, **options).token_ids

        greedy = answer()
        assert answer() == greedy == answer(sampling=Sampling(temperature=0.0, seed=3))
        hot = Sampling(temperature=5.0, top_p=0.95, seed=3)
        assert answer(sampling=hot) == answer(sampling=hot)
        assert len({answer(sampling=Sampling(5.0, 0.95, seed)) for seed in range(5)}) > 1
        assert answer(sampling=Sampling(5.0, 1e-6, 1)) == greedy  # only the likeliest token is left


def test_sampling_follows_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    generator = np.random.default_rng(0)
    counts = np.bincount([Sampling(1.0).choose(logits, generator) for _ in range(4000)], minlength=3)
    assert np.abs(counts / 4000 - [0.5, 0.3, 0.2]).max() < 0.03
    kept = {Sampling(1.0, top_p=0.7).choose(logits, generator) for _ in range(200)}
    assert kept == {0, 1}


@pytest.mark.parametrize("bad", ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}))
def test_bad_sampling_is_refused(bad):
    with pytest.raises(InputError):
        Sampling(**bad)


def test_broken_logits_are_refused():
    with pytest.raises(InputError, match="not finite"):
        Sampling().choose(np.array([0.0, np.nan], np.float32), np.random.default_rng(0))


def test_a_state_of_another_model_is_refused(bundle_of, tmp_path):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        session.prefill(session.prepare("abc"))
        session.state.save(tmp_path / "state.safetensors")
    with linmu.load(bundle_of("smolvlm"), threads=1) as other, pytest.raises(StateError, match="another model"):
        other.state.load(tmp_path / "state.safetensors")


def test_what_a_session_refuses(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        for prompt in ("", "  \n"):
            with pytest.raises(InputError, match="empty"):
                session.generate(prompt)
        with pytest.raises(InputError):
            session.generate("look", images=[tiny_image(0)])
        with pytest.raises(InputError, match="vocabulary"):
            session.prefill(ModelInputs(np.array([10**6]), ""))
        with pytest.raises(InputError, match="backend"):
            open_runner(session.bundle, "abacus")


def test_a_context_beyond_the_models_positions_goes_on_and_says_so(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        assert session.generate("short", max_new_tokens=1).notice is None
        session.reset()
        limit = int(session.bundle.manifest.generation["max_position_embeddings"])
        answer = session.generate("long " * (limit // 4), max_new_tokens=2)
        assert answer.prompt_tokens > limit and f"{limit} positions" in answer.notice


def test_several_sessions_keep_their_states_apart(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as one, linmu.load(bundle_of("llama"), threads=1) as two:
        one.prefill(one.prepare("abc"))
        two.prefill(two.prepare("xyz and more"))
        expected = one.step(5).copy()
        two.step(9)
        fresh = linmu.load(bundle_of("llama"), threads=1)
        fresh.prefill(fresh.prepare("abc"))
        assert np.array_equal(fresh.step(5), expected)
