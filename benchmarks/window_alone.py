"""What a text window gives without any state-space branch or training: SmolLM2-135M under a mask of sinks and a band.

    python benchmarks/window_alone.py [--texts 8] [--tokens 512]

The text is real: descriptions of the installed packages and Python's help topics, cut into contexts of equal length.
KL to the same model with all of its attention, mean over all positions, in nats, and how often the likeliest token is
the same. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import random
import sys
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics

import torch
from harness import finish, say, table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from pretrained import load_smollm2  # noqa: E402

WINDOWS, SINKS = (16, 64, 128, 256), (0, 1, 4)


def contexts(tokenizer, count: int, length: int) -> Tensor:
    """[count, length] token ids of real text, always the same for the same packages."""
    texts = [topics[name] for name in sorted(topics)]
    texts += sorted({found.metadata.get_payload() for found in distributions()} - {None})
    rows = []
    for text in texts:
        ids = tokenizer(text).input_ids
        rows += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    random.Random(0).shuffle(rows)
    return torch.tensor(rows[:count])


@torch.no_grad()
def log_probabilities(model, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Of one context [1, S], under a mask [S, S] bool or the model's own."""
    mask = None if mask is None else mask[None, None]
    return model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)


def main() -> None:
    """Every window with every number of sinks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    args = parser.parse_args()
    model, tokenizer = load_smollm2()
    rows = contexts(tokenizer, args.texts, args.tokens)
    place = torch.arange(args.tokens)
    behind = place[:, None] - place
    sums = {(window, sinks): torch.zeros(2) for window in WINDOWS for sinks in SINKS}
    for ids in rows.split(1):
        expected = log_probabilities(model, ids, None)
        for (window, sinks), total in sums.items():
            mask = (behind >= 0) & ((behind < window) | (place < sinks))
            got = log_probabilities(model, ids, mask)
            total[0] += (expected.exp() * (expected - got)).sum()
            total[1] += (expected.argmax(-1) == got.argmax(-1)).sum()
    results = []
    for (window, sinks), total in sums.items():
        kl, same = (total / rows.numel()).tolist()
        results.append({"window": window, "sinks": sinks, "kl": round(kl, 4), "same_token": round(same, 4)})
    say(table(results))
    finish({"benchmark": "window_alone", "texts": len(rows), "tokens": args.tokens, "results": results})


if __name__ == "__main__":
    main()
