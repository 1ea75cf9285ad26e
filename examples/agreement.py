"""How far a language student is from its teacher: next-token distributions by position, and what both write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from linmu.distill.window_dropout import set_window_off

PROMPT_TOKENS, GREEDY_TOKENS = 64, 32


@torch.no_grad()
def distance(teacher: PreTrainedModel, student: PreTrainedModel, contexts: Tensor, window: bool = True) -> dict:
    """Over contexts [N, S]: mean KL(teacher || student) in nats, that of the second half, share of same likeliest."""
    divergences, same = [], []
    for ids in contexts.split(1):
        p = teacher(input_ids=ids).logits.log_softmax(-1)
        if not window:
            set_window_off(student, torch.ones(1, dtype=torch.bool))
        q = student(input_ids=ids, use_cache=False).logits.log_softmax(-1)
        set_window_off(student, None)
        divergences.append((p.exp() * (p - q)).sum(-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    kl = torch.cat(divergences)
    return {
        "kl": float(kl.mean()),
        "kl_second_half": float(kl[:, kl.shape[1] // 2 :].mean()),
        "top1": float(torch.cat(same).float().mean()),
    }


@torch.no_grad()
def greedy_agreement(teacher: PreTrainedModel, student: PreTrainedModel, contexts: Tensor) -> dict[str, float]:
    """Greedy continuations of the contexts' beginnings: share of equal tokens, mean length before the first other."""
    equal, before = 0.0, 0
    options = {"max_new_tokens": GREEDY_TOKENS, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    for ids in contexts[:, :PROMPT_TOKENS].split(1):
        mask = torch.ones_like(ids)
        one, two = (
            model.generate(ids, attention_mask=mask, **options)[0, ids.shape[1] :] for model in (teacher, student)
        )
        same = one == two
        equal += float(same.float().mean())
        before += int(same.long().cumprod(0).sum())
    count = len(contexts)
    return {"equal_tokens": equal / count, "tokens_before_first_difference": before / count}


def token_rows(tokenizer, texts: Sequence[str], length: int) -> Tensor:
    """[N, length] ids of the texts that have so many tokens."""
    rows = [tokenizer(text).input_ids[:length] for text in texts]
    return torch.tensor([row for row in rows if len(row) == length])
