"""The texts of the recall benchmark: what is asked for was planted, and the last value counts."""

from __future__ import annotations

import pytest
import torch

from benchmarks.recall import ASKED, CONTROL, FACTS, KEYS, VALUES, additive, answers, scans_of, small_decoder, texts
from linmu.config import RULES
from linmu.model import delta, flex_ma, ssm


@pytest.mark.parametrize(("facts", "length"), [(8, 64), (32, 128), (64, 256), (32, 301)])
def test_the_values_asked_for_are_the_last_ones_planted(facts, length):
    batch = texts(3, length, facts, torch.Generator().manual_seed(0))
    assert batch.ids.shape == (3, length) and batch.asked.shape == batch.repeated.shape == (3, ASKED)
    for ids, asked, repeated in zip(batch.ids, batch.asked, batch.repeated, strict=True):
        planted: dict[int, list[int]] = {}
        for place in range(length - 2 * ASKED):
            if ids[place] < KEYS:
                planted.setdefault(int(ids[place]), []).append(int(ids[place + 1]))
        assert len(planted) == facts and sum(map(len, planted.values())) == facts + facts // 3
        for place, twice in zip(asked.tolist(), repeated.tolist(), strict=True):
            values = planted[int(ids[place])]
            assert int(ids[place + 1]) == values[-1] and KEYS <= values[-1] < KEYS + VALUES
            assert twice == (len(values) == 2)


def test_the_control_adds_a_share_of_the_value():
    q, k, v = (torch.randn(2, 5, 3, 4).double() for _ in range(3))
    g, beta, state = -torch.rand(2, 5, 3).double(), torch.rand(2, 5, 3).double(), torch.randn(2, 3, 4, 4).double()
    y, last = additive(ssm.chunked)(q, k, v, g, beta, state, 1.0, None, 3)
    expected, wanted = ssm.recurrent(q, k, beta[..., None] * v, g, state, 1.0)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(last, wanted)
    with scans_of(CONTROL):
        assert flex_ma.RULES["gated_delta"] is not delta
    assert flex_ma.RULES["gated_delta"] is delta


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("window", [0, 5])
def test_a_decoder_of_either_rule_answers_and_learns(rule, window):
    model = small_decoder(rule, window, 12, True, seed=1)
    logits, values = answers(model, texts(2, 64, FACTS[0], torch.Generator().manual_seed(1)))
    assert logits.shape[:2] == values.shape and logits.isfinite().all()
    logits.logsumexp(-1).sum().backward()
    block = model.model.layers[0].self_attn
    grads = [value.grad for value in block.parameters() if value.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)
