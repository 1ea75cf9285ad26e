"""Control tokens in what people write: text, unless asked for otherwise.

A user who writes `<|im_end|>` means these ten characters. A tokenizer makes the control token of them, and the prompt
is another one. So the texts of a conversation are *marked* before the chat template sees them: MARK stands in front of
everything that would become a control token or a placeholder. What the template itself writes has no mark. Marked
text is what sessions and processors work on; `plain_text` is what people see. When it is tokenized, a copy of the
tokenizer is used whose control tokens are spelled in characters that no text has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer

from linmu.errors import InputError
from linmu.processing.tokens import Encoded, encode, rust_calls

# Unicode's noncharacters: never in an interchanged text, so they cannot be confused with any.
MARK = "\ufdd0"
_SPELLING, _DIGITS = "\ufdef", "\ufdd1\ufdd2\ufdd3\ufdd4\ufdd5\ufdd6\ufdd7\ufdd8\ufdd9\ufdda"
_NOT_TEXT = re.compile("[\ud800-\udfff\ufdd0-\ufdef]")


def check_text(text: str, what: str = "the prompt") -> None:
    """Raise InputError for lone surrogates (bytes that were no UTF-8) and Unicode's noncharacters."""
    match = _NOT_TEXT.search(text)
    if match is None:
        return
    surrogate = match.group() < "\ue000"
    raise InputError(
        f"{what} holds {'half a character (a lone surrogate)' if surrogate else 'a noncharacter of Unicode'}",
        got=f"U+{ord(match.group()):04X} at character {match.start()}",
        expected="a text that UTF-8 can hold",
        fix="decode the input as UTF-8" if surrogate else "leave it out",
    )


def plain_text(marked: str) -> str:
    """A marked text as people see it."""
    return marked.replace(MARK, "")


class ControlTokens:
    """The control tokens of one tokenizer: special tokens, and `placeholders` that stand for pictures and video."""

    def __init__(self, tokenizer: Tokenizer, placeholders: Iterable[str] = ()):
        self.tokenizer = tokenizer
        wanted = {text for text in placeholders if text}
        added = tokenizer.get_added_tokens_decoder()
        self.ids = {token.content: i for i, token in added.items() if token.special or token.content in wanted}
        names = sorted({*self.ids, *wanted}, key=len, reverse=True)
        choice = "|".join(map(re.escape, names)) or "(?!)"
        first = f"(?=[{''.join(map(re.escape, sorted({name[0] for name in names})))}])" if names else ""  # for speed
        self._anywhere = re.compile(f"{first}(?={choice})")
        self._real = re.compile(f"{first}(?<!{MARK})(?:{choice})")

    def mark(self, text: str) -> str:
        """A text someone wrote, as marked text; raises InputError when it is no Unicode text."""
        return self.mark_parts([text])[0]

    def mark_parts(self, texts: Sequence[str]) -> list[str]:
        """Texts that a template may write side by side: what would be a control token only together is marked, too."""
        for text in texts:
            check_text(text)
        places = [match.start() for match in self._anywhere.finditer("".join(texts))]
        marked, start = [], 0
        for text in texts:
            here = [place - start for place in places if start <= place < start + len(text)]
            cuts = [0, *here, len(text)]
            marked.append(MARK.join(text[low:high] for low, high in pairwise(cuts)))
            start += len(text)
        return marked

    def starts(self, marked: str) -> re.Match[str] | None:
        """The control token that a marked text begins with."""
        return self._real.match(marked)

    def first(self, marked: str) -> re.Match[str] | None:
        """The first control token of a marked text."""
        return self._real.search(marked)

    def last(self, marked: str) -> int:
        """Where the last control token of a marked text begins; 0 without one."""
        return max((match.start() for match in self._real.finditer(marked)), default=0)

    def count(self, marked: str, token: str) -> int:
        """How often a control token stands in a marked text."""
        return len(re.findall(f"(?<!{MARK}){re.escape(token)}", marked))

    def encode(self, marked: str, add_special_tokens: bool, context: str = "") -> Encoded | None:
        """Token ids of a marked text that follows `context`, another one, which is read but not encoded.

        None when a token reaches from the one into the other.
        """
        tokenizer = self.tokenizer
        if MARK in marked or MARK in context:
            tokenizer = self._respelled
            marked, context = (self._real.sub(self._spell, text).replace(MARK, "") for text in (marked, context))
        return encode(tokenizer, marked, add_special_tokens, context)

    def _spell(self, match: re.Match[str]) -> str:
        """A control token as `_respelled` spells it; placeholders that are no tokens stay what they are."""
        token = self.ids.get(match.group())
        return match.group() if token is None else _spelling(token)

    @cached_property
    def _respelled(self) -> Tokenizer:
        """The tokenizer with the same control tokens under spellings that no text has."""
        with rust_calls("the tokenizer"):
            data = json.loads(self.tokenizer.to_str())
        for token in data["added_tokens"]:
            if token["content"] in self.ids:
                token["content"] = _spelling(token["id"])
        model = data["model"]
        if isinstance(model.get("vocab"), dict):
            model["vocab"] = {self._renamed(name): i for name, i in model["vocab"].items()}
        elif isinstance(model.get("vocab"), list):
            model["vocab"] = [[self._renamed(item[0]), *item[1:]] for item in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = self._renamed(model["unk_token"])
        with rust_calls("the tokenizer, its control tokens set apart,"):
            return Tokenizer.from_str(json.dumps(data))

    def _renamed(self, name: Any) -> Any:
        return _spelling(self.ids[name]) if name in self.ids else name


def _spelling(token: int) -> str:
    return _SPELLING + "".join(_DIGITS[int(digit)] for digit in f"{token:07d}") + _SPELLING
