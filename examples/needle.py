"""Planted facts: a sentence with a number, real text behind it, and the sentence's beginning again.

A model that carries the fact over the text goes on with the same number. The answer is graded by what the model writes
(greedy) and by the probability that it gives to the number. Facts, text and distances are the same for every model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = ("Alma", "Boris", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Irene", "Jonas", "Klara", "Leon")
PLACES = ("garden", "office", "cellar", "garage", "kitchen", "library", "workshop", "attic")
DISTANCES = (32, 64, 128, 256, 512, 1024, 2048)


@torch.no_grad()
def recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    distances: Sequence[int] = DISTANCES,
    count: int = 20,
) -> dict[int, dict[str, float]]:
    """By distance in tokens: share of facts written right, mean probability of a fact's digits (geometric)."""
    filler = tokenizer("\n\n".join(texts)).input_ids
    results = {}
    for distance in distances:
        right, logs = 0, 0.0
        for number in range(count):
            rng = random.Random(f"{distance} {number}")
            question = f"\n\nThe code of {rng.choice(NAMES)}'s {rng.choice(PLACES)} is"
            digits = str(rng.randrange(1000, 10000))
            fact, again = tokenizer(f"{question} {digits}.\n\n").input_ids, tokenizer(question).input_ids
            answer = tokenizer(f" {digits}", add_special_tokens=False).input_ids
            start = rng.randrange(max(1, len(filler) - distance))
            ids = [*fact, *filler[start : start + distance], *again]
            states = model.get_decoder()(input_ids=torch.tensor([ids + answer]), use_cache=False).last_hidden_state
            scores = model.get_output_embeddings()(states[0, len(ids) - 1 : -1]).log_softmax(-1)
            wanted = torch.tensor(answer)
            # greedy decoding writes these tokens exactly if each is the likeliest after those before it
            right += bool((scores.argmax(-1) == wanted).all())
            logs += float(scores.gather(1, wanted[:, None]).mean())
        results[distance] = {"right": right / count, "probability": float(torch.tensor(logs / count).exp())}
    return results
