"""Making sessions fail at every place where they can, beside one that never does."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from linmu.errors import BundleError
from tests.runtimes.sessions import media, says

PIECE = 24  # tokens; pictures of the tiny models have 16
TURNS = (("What is here? Say it in one word.", True), ("And what is there, beside it?", False), ("Why?", True))


@contextmanager
def failing(runner, method: str, call: int, error: BaseException, behind: bool):
    """Let call number `call` of a runner's method raise, before it does anything or when it has done everything."""
    real, count = getattr(runner, method), 0

    def wrapped(*arguments):
        nonlocal count
        count += 1
        if count == call + 1 and not behind:
            raise error
        found = real(*arguments)
        if count == call + 1:
            raise error
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, method, wrapped)
        yield
    assert count == call + 1, "the call that was to fail came"


@contextmanager
def failing_where_it_runs(runner):
    """Let a prompt's run be interrupted, if there is one."""
    real = runner.prefill

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "prefill", interrupted)
        yield


def same(one, other) -> bool:
    """Whether two snapshots are the same, to the bit; of pictures, how many there are."""
    equal = all(np.array_equal(one.tensors[name], value) for name, value in other.tensors.items())
    return equal and one.tensors.keys() == other.tensors.keys() and counters(one) == counters(other)


def counters(snapshot):
    """All of a snapshot but its tensors."""
    talk = snapshot.conversation
    return replace(snapshot, tensors={}, conversation=talk and talk.to_json())


@contextmanager
def counted(runner, *methods: str):
    """Count the calls of a runner's methods."""
    counts = dict.fromkeys(methods, 0)

    def counting(name, real):
        def wrapped(*arguments):
            counts[name] += 1
            return real(*arguments)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in methods:
            patch.setattr(runner, name, counting(name, getattr(runner, name)))
        yield counts


def check_every_piece(session, never) -> None:
    """Three turns; each is refused or interrupted at each of its pieces and vision calls, before and behind the run."""
    pictures = media(session.bundle.manifest.model.family)
    for number, (question, unfed) in enumerate(TURNS):
        given = pictures if number != 1 else {}
        with counted(never.runner, "prefill", "encode") as counts:
            wanted = never.prefill(never.prepare(question, **given), max_piece_tokens=PIECE).copy()
        assert counts["prefill"] > 1 and bool(counts["encode"]) == bool(given)
        inputs, before = session.prepare(question, **given), session.state.copy()
        for method, count in counts.items():
            for call in range(count):
                for behind, error in ((False, BundleError("refused")), (True, KeyboardInterrupt())):
                    with failing(session.runner, method, call, error, behind), pytest.raises(type(error)):
                        session.prefill(inputs, max_piece_tokens=PIECE)
                    assert same(session.state.copy(), before)
        assert np.array_equal(session.prefill(inputs, max_piece_tokens=PIECE), wanted)
        for one in (session, never):
            for token in (40, 50):
                one.step(token)
            one.state.pending = (60,) if unfed else ()
        assert same(session.state.copy(), never.state.copy())


def check_every_token(session, never, behind: bool) -> None:
    """`generate` undoes the whole call; a stream that fails is as one that was left there."""
    for turn in range(3):
        before, length = session.state.copy(), 5
        for method, count in (("prefill", 1), ("step", length - 1)):
            for call in range(count):
                with failing(session.runner, method, call, KeyboardInterrupt(), behind):
                    with pytest.raises(KeyboardInterrupt):
                        session.generate(f"turn {turn}", **says(session, "abcde", ended=False))
                assert same(session.state.copy(), before)
        for call in range(length - 1):
            with failing(session.runner, "step", call, BundleError("refused"), behind):
                stream = session.stream(f"turn {turn}", **says(session, "abcde", ended=False))
                with pytest.raises(BundleError, match="refused"):
                    list(stream)
            start = never.state.copy()
            left = never.stream(f"turn {turn}", **says(never, "abcde", ended=False))
            for _ in range(call + 1):
                next(left)
            left.close()
            assert same(session.state.copy(), never.state.copy())
            session.state.restore(before)
            never.state.restore(start)
        answers = [one.generate(f"turn {turn}", **says(one, "abcde", ended=False)) for one in (session, never)]
        assert answers[0].token_ids == answers[1].token_ids
        assert same(session.state.copy(), never.state.copy())
