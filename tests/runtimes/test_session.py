"""Sessions on real tiny bundles: pieces, states across backends, conversations, sampling, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import linmu
from linmu.errors import InputError, StateError
from linmu.processing import ModelInputs
from linmu.runtimes.backends import open_runner
from linmu.runtimes.sampling import Sampling
from tests.runtimes.sessions import gap, media
from tests.tiny import tiny_image, tiny_video

FAMILIES = ("llama", "smolvlm", "qwen3_vl")


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
        hot = Sampling(temperature=2.0, top_p=0.95, seed=3)
        assert answer(sampling=hot) == answer(sampling=hot)
        assert len({answer(sampling=Sampling(2.0, 0.95, seed)) for seed in range(5)}) > 1
        assert answer(sampling=Sampling(2.0, 1e-6, 1)) == greedy  # only the likeliest token is left


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
