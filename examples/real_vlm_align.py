"""The projector before any language model sees it: what stands on a patch comes out near its name's embedding.

Every patch inside a mark of the data is taught the tokens of the mark's text, by cross-entropy over all tokens that
marks have; a patch of the background is taught one word of its own. It takes minutes, since the language model does
not run; the decoder, which can read words, then starts from pictures that look like words.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
import transformers as hf
from real_vlm_features import Features
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

SHARPNESS = 20.0  # of the softmax over cosines
BACKGROUND, BACKGROUND_SHARE = " background", 0.08
BATCH = 4096  # patches
RATE = 2e-3


def patch_names(marks: list, side: int) -> list[str]:
    """What each of side x side patches shows, row by row: a mark's text, or "" for the background."""
    names = [""] * (side * side)
    for left, top, right, bottom, text in marks:
        inside = [
            row * side + column
            for row in range(side)
            for column in range(side)
            if left <= (column + 0.5) / side <= right and top <= (row + 0.5) / side <= bottom
        ]
        middle = [min(side - 1, max(0, int((a + b) / 2 * side))) for a, b in ((left, right), (top, bottom))]
        for place in inside or [middle[1] * side + middle[0]]:
            names[place] = text
    return names


class Targets:
    """Rows of token targets: tokens [n] are the columns; a text's target is even over its tokens."""

    def __init__(self, tokenizer, texts: list[str]):
        spelled = {text: self._tokens(tokenizer, text) for text in sorted(set(texts))}
        self.tokens = sorted({token for tokens in spelled.values() for token in tokens})
        column = {token: place for place, token in enumerate(self.tokens)}
        self.index = {text: place for place, text in enumerate(spelled)}
        self.table = torch.zeros(len(spelled), len(self.tokens))
        for text, tokens in spelled.items():
            for token in tokens:
                self.table[self.index[text], column[token]] += 1 / len(tokens)

    @staticmethod
    def _tokens(tokenizer, text: str) -> list[int]:
        """A name's tokens, as they are in a sentence and as they are alone."""
        wanted = [text] if text == BACKGROUND else [f" {text}", text]
        return [token for item in wanted for token in tokenizer(item, add_special_tokens=False).input_ids]


@torch.no_grad()
def standardise(model: hf.LlavaForConditionalGeneration, features: Tensor) -> None:
    """Let the projector's first layer see features of mean 0 and deviation 1; features [n, C]."""
    first = model.model.multi_modal_projector.linear_1
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-3)
    first.weight.normal_(std=first.in_features**-0.5, generator=torch.Generator().manual_seed(0))
    first.weight /= deviation
    first.bias.copy_(-first.weight @ mean)


def align(
    model: hf.LlavaForConditionalGeneration,
    tokenizer,
    data: Features,
    steps: int,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> float:
    """Train the float32 projector of `model` for `steps` batches of patches; returns the last mean loss."""
    generator = np.random.default_rng(seed)
    side = int(model.config.image_seq_length**0.5)
    names = [name for marks in data.marks for name in patch_names(marks, side)]
    keep = generator.random(len(names)) < BACKGROUND_SHARE
    places = np.array([place for place, name in enumerate(names) if name or keep[place]])
    targets = Targets(tokenizer, [name or BACKGROUND for name in names])
    labels = np.array([targets.index[names[place] or BACKGROUND] for place in places])
    flat = data.features.reshape(-1, data.features.shape[-1])
    standardise(model, torch.from_numpy(flat[np.sort(generator.choice(places, 4000))].astype(np.float32)))
    table = model.get_input_embeddings().weight.detach().float()
    mean = table[: model.config.image_token_index].mean(0)
    wanted = normalize(table[targets.tokens] - mean, dim=-1)
    length = (table[targets.tokens] - mean).norm(dim=-1).mean()
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=0.1)
    started, mean_loss = time.perf_counter(), 0.0
    for step in range(steps):
        chosen = np.sort(generator.choice(len(places), min(BATCH, len(places)), replace=False))
        seen = projector(torch.from_numpy(flat[places[chosen]].astype(np.float32))) - mean
        cosines = normalize(seen, dim=-1) @ wanted.T
        named = -(targets.table[labels[chosen]] * log_softmax(SHARPNESS * cosines, dim=-1)).sum(-1).mean()
        loss = named + (seen.norm(dim=-1) / length - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        mean_loss += (float(named.detach()) - mean_loss) / min(step + 1, 20)
        if step % 50 == 49:
            left = (time.perf_counter() - started) / (step + 1) * (steps - step - 1) / 3600
            say(f"align {step + 1}/{steps}: loss {mean_loss:.3f}, {left:.2f} hours left")
    return mean_loss
