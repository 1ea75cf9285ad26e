"""What a tokenizer file may make of a text before its model sees it: a bounded number of characters for each one.

A chain of replacements can double a text at every link, so that a short prompt fills any memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linmu.errors import InputError

MOST_GROWTH = 64.0  # characters for one; those of real models are below 4 ("\u2581" for a space, "..." for an ellipsis)
MOST_ADDED = 1 << 12  # tokens or characters that a post-processor or a prefix adds to every text


def check_tokenizer(path: Path) -> None:
    """Raise InputError for a tokenizer.json that could blow a text up."""
    document = json.loads(path.read_text(encoding="utf-8"))  # which the tokenizers library has read already
    growth = 1.0
    for part in (document.get("normalizer"), document.get("pre_tokenizer"), document.get("decoder")):
        growth = max(growth, _growth(part))
    if growth > MOST_GROWTH:
        raise InputError(
            f"the tokenizer {path} makes texts longer",
            got=f"{growth:.3g} times",
            expected=f"at most {MOST_GROWTH:g} times",
        )
    if (added := _added(document.get("post_processor"))) > MOST_ADDED:
        raise InputError(
            f"the tokenizer {path} adds to every text", got=f"{added} tokens", expected=f"at most {MOST_ADDED}"
        )


def _growth(part: Any) -> float:
    """At most how many characters a step makes of one."""
    if not isinstance(part, dict):
        return 1.0
    kind, growth = part.get("type"), 1.0
    for name in ("normalizers", "pretokenizers", "decoders"):
        for inner in part.get(name) or []:
            growth *= _growth(inner)
    if kind == "Replace":
        growth *= max(len(str(part.get("content", ""))), 1)
    elif kind in ("Prepend", "Metaspace"):
        growth *= max(len(str(part.get("prepend", part.get("replacement", "")))), 1)
    return growth


def _added(part: Any) -> int:
    if not isinstance(part, dict):
        return 0
    inner = sum(_added(item) for item in part.get("processors") or [])
    ids = (
        sum(
            len(token.get("ids", []))
            for token in (part.get("special_tokens") or {}).values()
            if isinstance(token, dict)
        )
        if isinstance(part.get("special_tokens"), dict)
        else 0
    )
    pieces = max((len(part.get(name) or []) for name in ("single", "pair")), default=0)
    return int(inner + pieces * max(ids, 1))
