"""A tokenizer.json that ExecuTorch's own tokenizer reads as the tokenizers library does.

ExecuTorch's C++ tokenizer keeps what a Split pattern matches and drops the text between two matches. Where a pattern
isolates its matches and keeps the rest, the same pieces come of a pattern that matches the rest, too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from linmu.files.atomic import write_bytes

CLASS = re.compile(r"\[(?!\^)(?:[^\[\]\\]|\\.)+\]")  # one plain character class


def match_everything(path: Path) -> bool:
    """Rewrite a tokenizer.json in place where that is needed; whether it was."""
    data = json.loads(path.read_text("utf-8"))
    changed = [_matching(step) for step in _steps(data.get("pre_tokenizer"))]
    if any(changed):
        write_bytes(path, json.dumps(data, ensure_ascii=False, indent=2).encode())
    return any(changed)


def _steps(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer's steps, whether it is a sequence or a single one."""
    if not pre_tokenizer:
        return []
    return pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]


def _matching(step: dict[str, Any]) -> bool:
    pattern = (step.get("pattern") or {}).get("Regex")
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert") or not pattern:
        return False
    if "(?!" in pattern or r"\s+" in pattern:  # of the kind of GPT-2's: matches everything already
        return False
    # a negated class where one will do: lookahead needs a slower engine in C++
    rest = f"[^{pattern[1:-1]}]+" if CLASS.fullmatch(pattern) else rf"(?:(?!{pattern})[\s\S])+"
    step["pattern"]["Regex"] = f"{pattern}|{rest}"
    return True
