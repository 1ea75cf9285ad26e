"""The level "stock": ExecuTorch's own LLM runners, asked the golden prompts, say what the reference says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from linmu.formats.bundle import Bundle
from linmu.processing import Processor
from linmu.runtimes.et_runner import EtRunner
from linmu.runtimes.stock_runner import stock_answer, tokenizer_ids
from linmu.verification.compare import TOLERANCE
from linmu.verification.golden import Golden
from linmu.verification.report import Check

# The runner's Python binding passes texts of single tokens, so an answer is compared up to the first that is none.
PARTIAL = "\ufffd"
NOTHING = "nothing was compared: the first token is part of a character, which the runner's binding cannot pass"


def stock_plan(bundle: Bundle, golden: Golden) -> list[tuple[str, str, Callable[[], Check]]]:
    """(level, name, check) of every golden prompt: the tokenizer's ids, then the answer."""
    plan: list[tuple[str, str, Callable[[], Check]]] = []
    for prompt in golden.prompts:
        plan.append(("stock", f"{prompt['name']}: tokenizer", partial(_tokenizer, bundle, prompt)))
        plan.append(("stock", f"{prompt['name']}: text", partial(_answer, bundle, prompt)))
    return plan


def _tokenizer(bundle: Bundle, prompt: dict[str, Any]) -> Check:
    """ExecuTorch's tokenizer on the prompt's text, against the bundle's."""
    name = f"{prompt['name']}: tokenizer"
    ids = tokenizer_ids(bundle, prompt["input_ids"])
    same = ids == prompt["input_ids"]
    place = next((i for i, pair in enumerate(zip(ids, prompt["input_ids"], strict=False)) if pair[0] != pair[1]), "")
    note = "" if same else f"ids differ from place {place}: {len(ids)} instead of {len(prompt['input_ids'])}"
    return Check("stock", EtRunner.backend, name, same, note=note)


def _answer(bundle: Bundle, prompt: dict[str, Any]) -> Check:
    """The runner's text against the reference's; a tie of the reference excuses what comes behind it."""
    name, processor = f"{prompt['name']}: text", Processor.from_folder(bundle.folder)
    images = [bundle.path(image) for image in prompt["images"]]
    ids = prompt["token_ids"]
    count = next((i for i, token in enumerate(ids) if PARTIAL in processor.decode([token])), len(ids))
    if count == 0:
        return Check("stock", EtRunner.backend, name, True, note=NOTHING)
    text = "".join(stock_answer(bundle, prompt["prompt"], images, count))
    ends = [processor.tokenizer.id_to_token(token) or "" for token in processor.eos_token_ids]
    wanted = written(processor, [token for token in ids[:count] if token not in processor.eos_token_ids])
    if text in (wanted, *(wanted + end for end in ends)):
        note = "" if count == len(ids) else f"{count} of {len(ids)} tokens: the next one is part of a character"
        return Check("stock", EtRunner.backend, name, True, note=note)
    step = _first_difference(processor, prompt, text)
    limit = TOLERANCE.widened((prompt["noise"][step], 0.0)).logits
    tie = prompt["gaps"][step] <= 2 * limit
    what = ", a tie of the reference" if tie else f": {text!r:.80} instead of {wanted!r:.80}"
    note = f"token {step} differs{what}"
    return Check("stock", EtRunner.backend, name, tie, note=note)


def _first_difference(processor: Processor, prompt: dict[str, Any], text: str) -> int:
    """The first step whose token the text does not have."""
    ids = prompt["token_ids"]
    for count in range(1, len(ids) + 1):
        if not text.startswith(written(processor, ids[:count])):
            return count - 1
    return len(ids) - 1


def written(processor: Processor, ids: list[int]) -> str:
    """The text of tokens as stock runners pass it on: special ones are written out."""
    text: str = processor.tokenizer.decode(ids, skip_special_tokens=False)
    return text
