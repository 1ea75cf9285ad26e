"""Recall of planted facts: tiny decoders of M-MATE blocks, trained from scratch with each rule of the recurrence.

    python benchmarks/recall.py [--steps 1600] [--windows 0 16] [--seeds 0 1] [--rules gated gated_delta] [--no-rope]

A text plants facts (a key token, then its value token) among distractors and then asks for 16 of them: key, value, key,
value, ... A third of the facts is planted again with another value: the last one counts. Loss and score are those of
the values asked for; guessing scores 3%. Every cell sees the same texts, 2,048 tokens a step: of 64 tokens with 8 facts
first, then of 128, then of 256 with 8, 32 and 64 facts. Longer texts are evaluated only; what is added to them are
distractors. The rule "additive" is a control: q, k and beta of the delta rule, but what is written is added as under
the gated rule. Prints a table (per cent) and a JSON line.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.harness import finish, say, table  # noqa: E402
from linmu.config import RULES, MMateConfig  # noqa: E402
from linmu.families import get_family  # noqa: E402
from linmu.model import delta, flex_ma, ssm  # noqa: E402
from linmu.model.modeling import decoder_layers, replace_attention, use_linmu_attention  # noqa: E402

CONTROL = "additive"
KEYS, VALUES, DISTRACTORS = 96, 32, 64
FACTS, ASKED = (8, 32, 64), 16
STAGES = ((0.4, 64, (8,)), (0.55, 128, (8, 32)), (1.0, 256, FACTS))  # until this share of the steps: length, facts
LENGTHS = (256, 1024, 2048)
TOKENS, RATE, WARM_UP, CONV_NOISE = 2048, 1e-2, 50, 0.3


@dataclass(frozen=True)
class Texts:
    """ids [B,S]; asked [B,A]: places of the keys asked for, whose values come next; repeated [B,A]: planted twice."""

    ids: Tensor
    asked: Tensor
    repeated: Tensor


def texts(count: int, length: int, facts: int, generator: torch.Generator) -> Texts:
    """`count` texts of `length` tokens with so many facts."""
    rows = [_text(length, facts, generator) for _ in range(count)]
    ids, asked, repeated = (torch.stack(part) for part in zip(*rows, strict=True))
    return Texts(ids, asked, repeated)


def _text(length: int, facts: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    keys = torch.randperm(KEYS, generator=generator)[:facts]
    twice = keys[: facts // 3]
    planted = torch.cat([keys, twice])[torch.randperm(facts + len(twice), generator=generator)]
    values = KEYS + torch.randint(VALUES, (len(planted),), generator=generator)
    plain = length - 2 * (len(planted) + ASKED)
    is_fact = torch.zeros(len(planted) + plain, dtype=torch.long)  # pieces of a text: facts of two tokens, distractors
    is_fact[torch.randperm(len(is_fact), generator=generator)[: len(planted)]] = 1
    places = ((is_fact + 1).cumsum(0) - is_fact - 1)[is_fact == 1]
    text = KEYS + VALUES + torch.randint(DISTRACTORS, (length,), generator=generator)
    text[places], text[places + 1] = planted, values
    last = dict(zip(planted.tolist(), values.tolist(), strict=True))
    chosen = keys[torch.randint(facts, (ASKED,), generator=generator)]
    asked = length - 2 * ASKED + 2 * torch.arange(ASKED)
    text[asked], text[asked + 1] = chosen, torch.tensor([last[key] for key in chosen.tolist()])
    return text, asked, torch.isin(chosen, twice)


def small_decoder(rule: str, window: int, width: int, rope: bool, seed: int) -> PreTrainedModel:
    """Two layers of M-MATE blocks with two heads each, at random; convolutions too, so that tokens meet from the start.

    q, k, v, gates of a block start as wide as an input of unit size asks for.
    """
    torch.manual_seed(seed)
    rule = "gated_delta" if rule == CONTROL else rule
    mmate = MMateConfig(rule=rule, text_window=window, rope=rope, chunk_size=32, max_half_life=4096.0)
    config = LlamaConfig(
        vocab_size=KEYS + VALUES + DISTRACTORS,
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
        block = layer.self_attn
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=width**-0.5)
        block.seed()
        conv = block.scan_forward.conv_weight
        conv.data += CONV_NOISE * torch.randn(conv.shape)
    return model


def additive(scan: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A scan of the gated rule that takes beta and writes that share of a value."""

    def call(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return scan(q, k, beta[..., None] * v, g, *rest)

    return call


@contextmanager
def scans_of(rule: str) -> Iterator[None]:
    """While open, blocks of the delta rule scan as `rule` does."""
    if rule == CONTROL:
        flex_ma.RULES["gated_delta"] = SimpleNamespace(step=additive(ssm.step), chunked=additive(ssm.chunked))
    try:
        yield
    finally:
        flex_ma.RULES["gated_delta"] = delta


def answers(model: PreTrainedModel, batch: Texts) -> tuple[Tensor, Tensor]:
    """Logits [B,A,V] at the keys asked for, and their values [B,A]."""
    rows = torch.arange(len(batch.ids))[:, None]
    hidden = model.model(batch.ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden[rows, batch.asked]), batch.ids[rows, batch.asked + 1]


def train(model: PreTrainedModel, steps: int, seed: int) -> float:
    """AdamW, cosine; the mean loss of the last twentieth of the steps."""
    generator = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    losses = []
    for step in range(steps):
        _, length, facts = next(stage for stage in STAGES if step < stage[0] * steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * cosine)
        logits, values = answers(model, texts(TOKENS // length, length, facts[step % len(facts)], generator))
        loss = functional.cross_entropy(logits.flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    tail = losses[-max(1, steps // 20) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def scores(model: PreTrainedModel, count: int) -> dict[str, dict[str, float]]:
    """Per cent of values found, by "facts@length": of all questions, and of those about facts planted twice."""
    found = {}
    for facts in FACTS:
        for length in LENGTHS:
            batch = texts(count, length, facts, torch.Generator().manual_seed(facts * length))
            logits, values = answers(model, batch)
            right = (logits.argmax(-1) == values).float()
            twice = right[batch.repeated].mean().item()
            found[f"{facts}@{length}"] = {
                "all": round(100 * right.mean().item(), 1),
                "twice": round(100 * twice, 1),
            }
    return found


def cell(rule: str, window: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training and its evaluation."""
    model = small_decoder(rule, window, args.width, not args.no_rope, seed)
    start = time.process_time()
    with scans_of(rule):
        loss = train(model, args.steps, seed)
        seconds = time.process_time() - start
        found = scores(model.eval(), args.texts)
    facts = {"rule": rule, "window": window, "seed": seed, "loss": round(loss, 3), "cpu_seconds": round(seconds)}
    return {**facts, "scores": found}


def main() -> None:
    """Every window, seed and rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--texts", type=int, default=32, help="of every length and number of facts, to evaluate")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=(*RULES, CONTROL))
    parser.add_argument("--no-rope", action="store_true", help="no rotation of q and k in the state-space branch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in args.seeds:
        for window in args.windows:
            for rule in args.rules:
                results.append(cell(rule, window, seed, args))
                say(str(results[-1]))
    rows = []
    for one in results:
        numbers = {name: f"{score['all']} ({score['twice']})" for name, score in one["scores"].items()}
        rows.append({name: value for name, value in one.items() if name != "scores"} | numbers)
    say(table(rows))
    finish({"benchmark": "recall", "steps": args.steps, "rope": not args.no_rope, "results": results})


if __name__ == "__main__":
    main()
