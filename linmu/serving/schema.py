"""Answers in a form that is asked for, held to it token by token: JSON, a JSON schema, a regular expression, a choice.

llguidance says which tokens may come next. It works on the bundle's own tokenizer: special tokens and placeholders
never come, end tokens only where the text is whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from linmu.errors import InputError
from linmu.processing import Processor
from linmu.processing.control import check_text
from linmu.processing.tokens import rust_calls
from linmu.serving.schema_limits import check_size, schema_text
from linmu.system.components import require

_END = "\ufdef"  # a noncharacter of Unicode: the end token of a tokenizer that has none
# Between two tokens of JSON: room for a line break and indentation, and an end to what a model may pad an answer with.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,20}"
# Within these a form takes at most a second to be looked at, and a token some milliseconds.
LIMITS: dict[str, Any] = {
    "max_items_in_row": 5_000,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


class Grammars:
    """Makes constraints for the answers of one model, each for one answer; may be asked by several threads.

    Every method raises InputError for a form that is wrong, cannot be met or is too large. Raises
    MissingComponentError without llguidance.
    """

    def __init__(self, processor: Processor):
        require("llguidance", needed_for="answers in a given form", extra="serve")
        self._processor = processor

    def json_object(self) -> TokenGrammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any] | bool) -> TokenGrammar:
        """JSON that a JSON schema (draft 2020-12) describes; keywords that cannot be held to are refused by name."""
        what, text = "the JSON schema", schema_text(schema)
        options: Any = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False}
        from llguidance import LLMatcher

        with rust_calls(what):
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=options)
        return TokenGrammar(self, what, grammar)

    def regex(self, pattern: str) -> TokenGrammar:
        """A text that a regular expression matches from its beginning to its end (Rust's syntax, no look-around)."""
        what = "the regular expression"
        check_size(what, pattern)
        check_text(pattern, what)
        from llguidance import LLMatcher

        return TokenGrammar(self, what, LLMatcher.grammar_from_regex(pattern))

    def choice(self, texts: Sequence[str]) -> TokenGrammar:
        """One of some texts."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError("the choice", got=repr(texts)[:60], expected="a list of texts, none of them empty")
        return self.regex("|".join(map(_literal, texts)))

    @cached_property
    def vocabulary(self) -> int:
        """Tokens of the model's logits."""
        return self._processor.vocabulary or self._tokens

    @cached_property
    def _tokens(self) -> int:
        return max(self._processor.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def never(self) -> np.ndarray:
        """Tokens [V] bool that no text is made of: control tokens and placeholders, except what ends an answer."""
        found = np.zeros(self.vocabulary, bool)
        ids = set(self._processor.control.ids.values()) - set(self._processor.eos_token_ids)
        found[[i for i in ids if i < self.vocabulary]] = True
        found[self._tokens :] = True  # rows that no token stands for
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """Llguidance's view of the tokenizer, with a number for every logit."""
        from llguidance import LLTokenizer

        with rust_calls("the tokenizer, to hold answers to a form,"):
            core = Tokenizer.from_str(self._processor.tokenizer.to_str())
            limit = min(self._tokens, self.vocabulary)
            ends: list[Any] = [token for token in self._processor.eos_token_ids if token < limit]
            if not ends:  # one that is never allowed
                core.add_special_tokens([_END])
                ends = [core.token_to_id(_END)]
            data = json.loads(core.to_str())
            data["decoder"] = _spaces_replaced(data["decoder"])
            return LLTokenizer(json.dumps(data), n_vocab=max(self._tokens + 1, self.vocabulary), eos_token=ends)


class TokenGrammar:
    """A Constraint by llguidance; a grammar that cannot be begun is refused at once."""

    def __init__(self, grammars: Grammars, what: str, grammar: str):
        from llguidance import LLMatcher, LLParserLimits

        self._grammars, self._what = grammars, what
        with rust_calls(what):
            self._matcher = LLMatcher(grammars.tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        self._check()
        self._mask: np.ndarray | None = self._next_mask()  # costly forms show here
        if not self._mask.any():
            raise InputError(f"{what} cannot be met with the tokens of this model")

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V] with -inf where a token may not come; raises InputError when the form turns out too costly."""
        if self._mask is None:
            self._mask = self._next_mask()
        return np.where(self._mask, logits, logits.dtype.type(-np.inf))

    def accept(self, token: int) -> None:
        """A token was chosen; raises InputError for one that was not allowed."""
        self._mask = None
        if not self._matcher.consume_token(token):
            self._check()
            raise InputError(f"{self._what}: token {token} may not come here")

    def _next_mask(self) -> np.ndarray:
        """Tokens [V] bool that may come."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=len(self._grammars.never), bitorder="little").astype(bool)
        return mask & ~self._grammars.never

    def _check(self) -> None:
        if self._matcher.is_error():
            told = self._matcher.get_error().replace("<non-verbose/>", "").split("\n   1 |")[0]
            raise InputError(f"{self._what} cannot be followed", got=" ".join(told.split())[:300])


def _spaces_replaced(part: Any) -> Any:
    """A decoder with Metaspace written as llguidance knows it: a replacement of its sign by a space."""
    if isinstance(part, dict) and part.get("type") == "Metaspace":
        return {"type": "Replace", "pattern": {"String": part.get("replacement", "\u2581")}, "content": " "}
    if isinstance(part, dict) and isinstance(part.get("decoders"), list):
        return {**part, "decoders": [_spaces_replaced(inner) for inner in part["decoders"]]}
    return part


def _literal(text: str) -> str:
    """A text as Rust's regular expressions spell it."""
    return re.sub(r"[^\w]", lambda match: rf"\x{{{ord(match.group()):X}}}", text)
