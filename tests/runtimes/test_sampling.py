"""Choosing tokens, each rule held to transformers' own; log probabilities; what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as theirs

from linmu.errors import InputError
from linmu.runtimes.logits import draw, log_probabilities, nucleus, truncate, weights_of
from linmu.runtimes.sampling import Choice, Sampling

PROMPT = np.array([3, 3, 0, 7])
FEW = [-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, 2.0]  # drawn from with repetition: ties are common
numbers = st.one_of(st.sampled_from(FEW), st.floats(-1e4, 1e4, width=32))
some_logits = st.lists(numbers, min_size=8, max_size=60).map(lambda values: np.array(values, np.float32))


def their_scores(processors, logits, ids=PROMPT) -> np.ndarray:
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    for processor in processors:
        scores = processor(torch.tensor(np.asarray(ids))[None], scores)
    return scores[0].numpy()


def chooser(**fields):
    return Sampling(**fields).chooser(PROMPT)


def ours_kept(logits, temperature, **fields) -> np.ndarray:
    """Scores as transformers has them: -inf for what cannot be drawn."""
    weights = weights_of(logits.astype(np.float64), temperature)
    rules = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **fields}
    return np.where(truncate(weights, **rules) > 0, logits.astype(np.float64) / temperature, -np.inf)


# --- the same rules as transformers


@given(some_logits, st.floats(0.1, 2), st.integers(1, 70))
def test_top_k_keeps_what_transformers_keeps(logits, temperature, top_k):
    """Ties with the last one of k included."""
    warpers = [theirs.TemperatureLogitsWarper(temperature), theirs.TopKLogitsWarper(top_k)]
    wanted = their_scores(warpers, logits)
    kept = ours_kept(logits, temperature, top_k=top_k)
    drawable = wanted - wanted.max() > -700  # float64 has no probability for less
    np.testing.assert_array_equal(np.isfinite(kept) & drawable, np.isfinite(wanted) & drawable)


@given(some_logits, st.floats(0.1, 2), st.floats(0, 0.999))
def test_top_p_keeps_what_transformers_keeps(logits, temperature, top_p):
    """Of equal tokens at the border transformers takes any, we the first: as many, of the same probabilities."""
    wanted = their_scores([theirs.TemperatureLogitsWarper(temperature), theirs.TopPLogitsWarper(top_p)], logits)
    kept = ours_kept(logits, temperature, top_p=top_p)
    weights = weights_of(logits.astype(np.float64), temperature)
    sums = np.cumsum(np.sort(weights)[::-1]) / weights.sum()
    if np.abs(sums - top_p).min() > 1e-9:  # where rounding does not decide
        np.testing.assert_allclose(np.sort(kept[np.isfinite(kept)]), np.sort(wanted[np.isfinite(wanted)]))


@given(some_logits, st.floats(0.1, 2), st.floats(0, 1))
def test_min_p_keeps_what_transformers_keeps(logits, temperature, min_p):
    wanted = their_scores([theirs.TemperatureLogitsWarper(temperature), theirs.MinPLogitsWarper(min_p)], logits)
    weights = weights_of(logits.astype(np.float64), temperature)
    if np.abs(weights - min_p).min() > 1e-9:
        kept = ours_kept(logits, temperature, min_p=min_p)
        np.testing.assert_array_equal(np.isfinite(kept), np.isfinite(wanted))


@given(some_logits, st.floats(0.3, 2), st.integers(2, 9), st.floats(0.05, 0.95), st.floats(0.01, 0.5))
def test_all_together_give_transformers_distribution(logits, temperature, top_k, top_p, min_p):
    """The order matters: what top_k leaves is what top_p shares out, and what that leaves is min_p's."""
    logits = logits + np.arange(len(logits), dtype=np.float32) * 1e-3  # no ties here
    warpers = [
        theirs.TemperatureLogitsWarper(temperature),
        theirs.TopKLogitsWarper(top_k),
        theirs.TopPLogitsWarper(top_p),
        theirs.MinPLogitsWarper(min_p),
    ]
    wanted = torch.tensor(their_scores(warpers, logits)).softmax(-1).numpy()
    weights = truncate(weights_of(logits.astype(np.float64), temperature), top_k, top_p, min_p)
    np.testing.assert_allclose(weights / weights.sum(), wanted, atol=1e-9)


@given(some_logits, st.floats(0.3, 3), st.lists(st.integers(0, 7), max_size=5), st.dictionaries(
    st.integers(0, 7), st.floats(-100, 100), max_size=4))  # fmt: skip
def test_bias_and_repetition_penalty_are_those_of_transformers(logits, penalty, said, bias):
    choose = chooser(repetition_penalty=penalty, logit_bias=bias)
    for token in said:
        choose._remember(token)
    processors = [theirs.RepetitionPenaltyLogitsProcessor(penalty)]
    if bias:
        sequences = {(token,): value for token, value in bias.items()}
        processors.insert(0, theirs.SequenceBiasLogitsProcessor(sequences))
    wanted = their_scores(processors, logits, [*PROMPT, *said])
    # transformers adds its bias in float32
    np.testing.assert_allclose(choose._adjusted(logits), wanted, rtol=1e-5, atol=1e-4)


@given(some_logits, st.floats(-2, 2), st.floats(-2, 2), st.lists(st.integers(0, 7), max_size=9))
def test_frequency_and_presence_are_openais_formula(logits, frequency, presence, said):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, of generated tokens only (transformers has no such rule)."""
    choose = chooser(frequency_penalty=frequency, presence_penalty=presence)
    for token in said:
        choose._remember(token)
    counts = np.bincount(said, minlength=len(logits)) if said else np.zeros(len(logits))
    wanted = logits.astype(np.float64) - counts * frequency - (counts > 0) * presence
    np.testing.assert_allclose(choose._adjusted(logits), wanted)


# --- choosing


@given(some_logits)
def test_greedy_is_the_largest_logit_and_ties_go_to_the_first(logits):
    for fields in ({}, {"top_k": 1, "top_p": 0.1, "min_p": 0.9, "seed": 1}):
        assert chooser(**fields).choose(logits) == Choice(int(logits.argmax()))


def test_penalties_change_what_greedy_says():
    logits = np.array([1.0, 0.9, 0.8], np.float32)
    choose = Sampling(presence_penalty=0.15).chooser(np.array([1]))
    assert [choose.choose(logits).token for _ in range(4)] == [0, 1, 0, 0]
    choose = Sampling(frequency_penalty=0.15).chooser(np.array([1]))
    assert [choose.choose(logits).token for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    choose = Sampling(repetition_penalty=2.0).chooser(np.array([0]))  # the prompt counts
    assert [choose.choose(logits).token for _ in range(3)] == [1, 2, 0]
    assert Sampling(logit_bias={2: 1}).chooser(np.array([0])).choose(logits).token == 2


@given(some_logits, st.floats(1e-300, 2), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_any_extreme_gives_a_token_that_may_be_drawn(logits, temperature, top_k, top_p, min_p, seed):
    masked = logits.copy()
    masked[1::2] = -np.inf
    fields = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    token = chooser(**fields).choose(masked).token
    assert np.isfinite(masked[token])
    assert token == chooser(**fields).choose(masked).token
    if top_k == 1 or top_p == 0 or min_p == 1 or temperature < 1e-12:
        assert masked[token] == masked.max()


def test_draws_follow_the_probabilities_within_the_nucleus():
    logits = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    choose = chooser(temperature=1.0, seed=0)
    counts = np.bincount([choose.choose(logits).token for _ in range(4000)], minlength=3)
    assert np.abs(counts / 4000 - [0.2, 0.5, 0.3]).max() < 0.03
    choose = chooser(temperature=1.0, top_p=0.7, seed=0)
    counts = np.bincount([choose.choose(logits).token for _ in range(4000)], minlength=3)
    assert np.abs(counts / 4000 - [0, 0.625, 0.375]).max() < 0.03


def test_equal_tokens_at_a_nucleus_border_are_taken_by_id_however_many_there_are():
    for size in (10, 300, 5000):
        np.testing.assert_array_equal(nucleus(np.ones(size), 0.5), np.arange(size // 2))
    weights = np.linspace(1, 0.001, 5000)[np.random.default_rng(0).permutation(5000)]
    for top_p in (0.0, 0.1, 0.6, 0.99):  # found among 256, 2,048 and all
        order = np.argsort(-weights, kind="stable")
        count = int((np.cumsum(weights[order]) < top_p * weights.sum()).sum()) + 1
        np.testing.assert_array_equal(nucleus(weights, top_p), order[:count])


@pytest.mark.parametrize("number", (0.0, 0.5, 1 - 2**-53))
def test_a_token_of_weight_0_is_never_drawn(number):
    assert draw(np.array([0.0, 0.3, 0.0, 0.7, 0.0]), number) in (1, 3)


# --- log probabilities


@given(some_logits)
def test_log_probabilities_are_those_of_torch_in_float64(logits):
    wanted = torch.tensor(logits, dtype=torch.float64).log_softmax(-1).numpy()
    np.testing.assert_allclose(log_probabilities(logits), wanted, rtol=1e-12, atol=1e-12)


@settings(max_examples=50)
@given(some_logits, st.integers(0, 20))
def test_logprobs_are_of_the_model_alone(logits, count):
    """Whatever changes the choice, what is told is the distribution that the graph gave."""
    bias = {int(logits.argmax()): -100.0}
    fields = {"temperature": 1.3, "top_k": 2, "repetition_penalty": 1.5, "logit_bias": bias, "seed": 3}
    choice = chooser(**fields, logprobs=count).choose(logits)
    wanted = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    assert choice.logprob == pytest.approx(float(wanted[choice.token]), abs=1e-12)
    assert len(choice.top) == min(count, len(logits))
    best = torch.sort(wanted, descending=True, stable=True)
    assert [token for token, _ in choice.top] == best.indices[:count].tolist()
    np.testing.assert_allclose([value for _, value in choice.top], best.values[:count].numpy(), atol=1e-12)


def test_nothing_is_told_that_was_not_asked_for():
    assert chooser().choose(np.arange(9, dtype=np.float32)) == Choice(8, None, ())
    assert chooser(logprobs=0).choose(np.zeros(8, np.float32)) == Choice(0, pytest.approx(-math.log(8)), ())


# --- what is refused

NUMBERS = {
    "temperature": (-0.1, 2.1),
    "top_p": (-0.1, 1.1),
    "min_p": (-0.1, 1.1),
    "presence_penalty": (-2.1, 2.1),
    "frequency_penalty": (-2.1, 2.1),
    "repetition_penalty": (0, 1000.0),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_out_of_range_are_refused_by_name(name):
    for bad in (*NUMBERS[name], math.nan, math.inf, -math.inf, None, "1", True, [1], 10**400, 1j):
        with pytest.raises(InputError, match=f"^{name}; got .*; expected a number from") as caught:
            Sampling(**{name: bad})
        assert len(str(caught.value)) < 200
    low, high = (round(edge, 0) for edge in NUMBERS[name])
    if name != "repetition_penalty":
        assert getattr(Sampling(**{name: np.float32(low)}), name) == low and Sampling(**{name: high})


@pytest.mark.parametrize(
    "name, bad",
    [
        *(("top_k", bad) for bad in (-2, 1.0, "5", None, True, math.nan)),
        *(("seed", bad) for bad in (1 << 63, -(1 << 63) - 1, 1.5, "1", True)),
        *(("logprobs", bad) for bad in (-1, 21, 1.5, "1", True)),
        *(("logit_bias", bad) for bad in ([1], None, {"5": 1}, {-1: 1}, {True: 1}, {5: 101}, {5: math.nan}, {5: "1"})),
    ],
)
def test_other_fields_are_refused_by_name(name, bad):
    with pytest.raises(InputError, match=f"^{name}; got .*; expected"):
        Sampling(**{name: bad})


def test_what_the_ranges_allow():
    Sampling(top_k=-1, seed=-(1 << 63), logprobs=20, logit_bias={0: -100, np.int64(7): 100.0})
    for seed in (-1, 0, (1 << 63) - 1):
        assert chooser(temperature=1.0, seed=seed).choose(np.zeros(50, np.float32)) == chooser(
            temperature=1.0, seed=seed
        ).choose(np.zeros(50, np.float32))
    assert hash(Sampling(logit_bias={1: 1})) and Sampling(logit_bias={1: 1}) != Sampling()


def test_a_bias_of_a_token_that_the_model_lacks_is_refused():
    Sampling(logit_bias={9: 1}).check_vocabulary(10)
    with pytest.raises(InputError, match="logit_bias; got token 10; expected token ids from 0 to 9"):
        Sampling(logit_bias={10: 1}).check_vocabulary(10)


@pytest.mark.parametrize("fields", ({}, {"temperature": 1.0}, {"repetition_penalty": 1.1}), ids=str)
@pytest.mark.parametrize("bad", (np.nan, np.inf))
def test_logits_that_are_not_finite_are_refused(fields, bad):
    for logits in (np.array([0.0, bad, 1.0, 2.0] * 2, np.float32), np.full(8, -np.inf, np.float32)):
        with pytest.raises(InputError, match="not finite"):
            chooser(**fields).choose(logits)
