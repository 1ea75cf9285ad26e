"""Whatever fails in a session leaves it as it was: the same call then gives what a session gives that never failed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import linmu
from linmu.errors import InputError, StateError
from linmu.processing import ModelInputs
from tests.runtimes.failing import check_every_piece, check_every_token, failing, failing_where_it_runs, same

BACKENDS = ("onnxruntime", "torch")  # ExecuTorch: tests/export/phone/test_bundle.py


@pytest.fixture
def pair_of(bundle_of):
    """Two sessions of one model in a backend: one that is made to fail, and one that never does."""

    def make(backend: str):
        path = bundle_of("smolvlm", plain=backend == "torch")
        return linmu.load(path, backend, threads=1), linmu.load(path, backend, threads=1)

    return make


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_that_fails_at_any_piece(backend, pair_of):
    session, never = pair_of(backend)
    with session, never:
        check_every_piece(session, never)


@pytest.mark.parametrize("behind", (False, True), ids=("before", "behind"))
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_that_fails_at_any_token(backend, behind, pair_of):
    session, never = pair_of(backend)
    with session, never:
        check_every_token(session, never, behind)


def test_a_token_behind_a_pending_one_is_fed_with_it_or_not_at_all(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        session.generate("one?", max_new_tokens=2)
        before = session.state.copy()
        other = (before.pending[0] + 1) % 100
        with pytest.raises(InputError, match="token id"):
            session.step(10**6)
        assert same(session.state.copy(), before)
        for call in (0, 1):
            with failing(session.runner, "step", call, KeyboardInterrupt(), True), pytest.raises(KeyboardInterrupt):
                session.step(other)
            assert same(session.state.copy(), before)
        session.step(other)
        assert session.state.tokens == before.tokens + 2 and session.state.pending == ()


def test_an_interrupt_while_a_state_is_put_back_is_made_good(bundle_of, tmp_path):
    """A second Ctrl-C hits the writing itself: the next use writes it again, whole."""
    with linmu.load(bundle_of("llama"), threads=1) as session:
        session.generate("one?", max_new_tokens=3)
        session.state.save(tmp_path / "one")
        session.generate("two?", max_new_tokens=3)
        before, write = session.state.copy(), session.state.handle.write

        def half(tensors):
            write({name: value * 0 for name, value in tensors.items()})
            raise KeyboardInterrupt

        inputs = session.prepare("three?")
        for change in (
            lambda: session.state.load(tmp_path / "one"),
            lambda: session.state.restore(replace(before, tokens=1)),
            lambda: session.prefill(inputs),
        ):
            with pytest.MonkeyPatch.context() as patch, failing_where_it_runs(session.runner):
                patch.setattr(session.state.handle, "write", half)
                with pytest.raises(KeyboardInterrupt):
                    change()
            assert same(session.state.copy(), before)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session.state.handle, "zero", lambda: half(before.tensors))
            with pytest.raises(KeyboardInterrupt):
                session.reset()
        empty = session.state.copy()  # a reset goes through to its end
        assert session.messages == [] and empty.tokens == 0 and not any(x.any() for x in empty.tensors.values())


def test_a_copy_of_another_models_state_is_refused(bundle_of):
    with (
        linmu.load(bundle_of("llama"), threads=1) as one,
        linmu.load(bundle_of("smolvlm", text_window=8), threads=1) as other,
    ):
        one.generate("one?", max_new_tokens=2)
        before, foreign = one.state.copy(), other.state.copy()
        with pytest.raises(StateError, match="another model"):
            other.state.restore(before)
        name = next(iter(before.tensors))
        wider = {**before.tensors, name: before.tensors[name][..., :1]}  # would broadcast
        with pytest.raises(StateError, match="another model"):
            one.state.restore(replace(before, tensors=wider))
        assert same(one.state.copy(), before) and same(other.state.copy(), foreign)


def test_a_prompt_without_tokens_changes_nothing(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        session.generate("one?", max_new_tokens=2)
        session.step(session.state.pending[0])
        before = session.state.copy()
        for ids in ([], [10**6], [-1]):
            with pytest.raises(InputError):
                session.prefill(ModelInputs(np.array(ids, np.int64), ""))
            assert same(session.state.copy(), before)
