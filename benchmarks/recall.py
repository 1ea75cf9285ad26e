"""Recall of planted facts: tiny students trained from scratch, the gated rule against the gated delta rule.

    python benchmarks/recall.py [--seconds 150] [--windows 0 16] [--seeds 0 1] [--width 64] [--no-rope]

A text of S tokens plants facts (a key token, its value token) among distractors and then asks for 16 of them: key,
value, key, value ... The loss and the score are those of the values asked for. A third of the facts are planted again
with another value: the last one counts. Training takes texts of 256 tokens with 8, 32 or 64 facts for `--seconds` of one
core (equal time, not equal steps, and `--steps` the other way round); evaluation also longer texts, in which only
distractors are added. Prints a table (per cent of the values asked for) and a JSON line.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from harness import finish, say, table
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from linmu.config import MMateConfig
from linmu.families import get_family
from linmu.model.modeling import decoder_layers, replace_attention, use_linmu_attention

KEYS, VALUES, DISTRACTORS = 128, 64, 64
VOCAB = KEYS + VALUES + DISTRACTORS
FACTS, ASKED, TRAINED = (8, 32, 64), 16, 256
LENGTHS = (256, 512, 1024, 2048)
RULES = ("gated", "gated_delta")


@dataclass(frozen=True)
class Texts:
    """ids [B,S]; asked [B,A] places of the keys asked for (the token behind each is its value); repeated [B,A] bool."""

    ids: Tensor
    asked: Tensor
    repeated: Tensor


def texts(batch: int, length: int, facts: int, generator: torch.Generator) -> Texts:
    """A batch of texts: facts and distractors mixed, then ASKED questions; a third of the facts is planted twice."""
    asked, again = min(ASKED, facts), facts // 3
    plain = length - 2 * (facts + again + asked)
    ids = torch.empty(batch, length, dtype=torch.long)
    places = torch.empty(batch, asked, dtype=torch.long)
    repeated = torch.empty(batch, asked, dtype=torch.bool)
    for row in range(batch):
        keys = torch.randperm(KEYS, generator=generator)[:facts]
        planted = torch.cat([keys, keys[:again]])
        values = KEYS + torch.randint(VALUES, (len(planted),), generator=generator)
        order = torch.randperm(len(planted), generator=generator)
        planted, values = planted[order], values[order]
        # pieces in order: a fact takes two tokens, a distractor one
        kind = torch.zeros(len(planted) + plain, dtype=torch.long)
        kind[torch.randperm(len(kind), generator=generator)[: len(planted)]] = 1
        start = torch.cumsum(kind + 1, 0) - kind - 1
        text = KEYS + VALUES + torch.randint(DISTRACTORS, (length,), generator=generator)
        where = start[kind == 1]
        text[where], text[where + 1] = planted, values
        last = {int(key): int(value) for key, value in zip(planted, values, strict=True)}
        chosen = keys[torch.randperm(facts, generator=generator)[:asked]]
        ask = length - 2 * asked + 2 * torch.arange(asked)
        text[ask], text[ask + 1] = chosen, torch.tensor([last[int(key)] for key in chosen])
        twice = set(keys[:again].tolist())
        ids[row], places[row] = text, ask
        repeated[row] = torch.tensor([int(key) in twice for key in chosen])
    return Texts(ids, places, repeated)


def small_student(rule: str, window: int, width: int, rope: bool) -> PreTrainedModel:
    """Two layers of M-MATE blocks, random."""
    mmate = MMateConfig(rule=rule, text_window=window, rope=rope, chunk_size=32, max_half_life=4096.0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=width**-0.5,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    replace_attention(model, mmate, get_family("llama"))
    use_linmu_attention(model)
    for layer in decoder_layers(model):
        for module in layer.self_attn.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=width**-0.5)
        layer.self_attn.seed()
    return model


def answers(student: PreTrainedModel, batch: Texts) -> tuple[Tensor, Tensor]:
    """Logits [B,A,V] at the keys asked for, and the values [B,A]."""
    hidden = student.model(batch.ids).last_hidden_state
    rows = torch.arange(len(batch.ids))[:, None]
    return student.lm_head(hidden[rows, batch.asked]), batch.ids[rows, batch.asked + 1]


def train(student: PreTrainedModel, seconds: float, steps: int, seed: int, batch: int = 16) -> tuple[int, float]:
    """AdamW, cosine by time (or steps) from 3e-3; returns steps and the mean loss of the last tenth."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3, weight_decay=0.01)
    losses: list[float] = []
    start = time.process_time()
    while True:
        share = len(losses) / steps if steps else (time.process_time() - start) / seconds
        if share >= 1:
            break
        warm = min(1.0, (len(losses) + 1) / 50)
        rate = 3e-3 * warm * (0.02 + 0.98 * 0.5 * (1 + torch.cos(torch.tensor(share * torch.pi)).item()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits, values = answers(student, texts(batch, TRAINED, FACTS[len(losses) % len(FACTS)], generator))
        loss = functional.cross_entropy(logits.flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    tail = losses[-max(1, len(losses) // 10) :]
    return len(losses), sum(tail) / len(tail)
