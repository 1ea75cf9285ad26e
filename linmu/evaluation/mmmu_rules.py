"""MMMU's reading of answers: option letters from free text, and numbers or phrases of open questions."""

from __future__ import annotations

import re
from collections.abc import Sequence

EDGES = (",", ".", "!", "?", ";", ":", "'")  # stripped one after the other, in this order, as the benchmark does
LONG_ANSWER = 5  # words; only a longer text is searched for the wording of an option
KEY_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
TRIVIAL = frozenset(":,.!?;'")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.5e3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12.5
)


def chosen_letter(text: str, options: Sequence[str]) -> str:
    """The letter of the chosen option, "" when none can be read.

    Looked for in this order: "(A)"; A between blanks; A behind a blank and before a full stop; in a text of more than
    five words the wording of an option. Of several the one that comes last counts.
    """
    for edge in EDGES:
        text = text.strip(edge)
    text = f" {_one_line(text)} "
    letters = {chr(ord("A") + place): _one_line(option) for place, option in enumerate(options)}
    for form in ("({})", " {} ", " {}."):
        places = {key: text.rfind(form.format(key)) for key in letters}
        if best := _last(places):
            return best
    if len(text.split()) > LONG_ANSWER:
        return _last({key: text.lower().rfind(option.lower()) for key, option in letters.items()})
    return ""


def open_candidates(text: str) -> list[str | float]:
    """What an open answer may mean: the tail behind key words of each line, and every number in it."""
    phrases = _key_phrases(text)
    parts = [*phrases, *(number for phrase in phrases for form in NUMBERS for number in re.findall(form, phrase))]
    return list(dict.fromkeys(item for part in parts for item in _forms(part)))


def is_right(candidates: Sequence[str | float], answers: Sequence[str]) -> bool:
    """Whether a number equals an answer or a phrase contains one; numbers are compared to two decimals."""
    wanted = [form for answer in answers for form in _forms(answer)]
    words = [form for form in wanted if isinstance(form, str)]
    return any(
        any(word in candidate for word in words) if isinstance(candidate, str) else candidate in wanted
        for candidate in candidates
    )


def _one_line(text: str) -> str:
    """White space of any kind as one blank: a letter on a line of its own stands between blanks too."""
    return " ".join(text.split())


def _last(places: dict[str, int]) -> str:
    """The key with the greatest place, the first of equals; "" when none is there."""
    best = max(places, key=lambda key: places[key], default="")
    return best if best and places[best] >= 0 else ""


def _key_phrases(text: str) -> list[str]:
    text = text.strip().strip(".").lower()
    lines = text.split("\n")  # the benchmark would also split sentences, but at capitals, and has lowered them by then
    phrases = []
    for number, line in enumerate(lines):
        words = (*KEY_WORDS, "=") if number == len(lines) - 1 else KEY_WORDS  # the last line may be an equation
        tails = [line.split(word)[-1].strip() for word in words if word in line]
        shortest = _shortest(tails)
        if shortest and shortest not in TRIVIAL:
            phrases.append(shortest)
    return phrases or [text]


def _shortest(tails: Sequence[str]) -> str:
    """The first of the shortest; an empty tail is passed over only by what follows it, as in the benchmark."""
    shortest = ""
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def _forms(text: str) -> list[str | float]:
    """A number rounded to two decimals, or the lowered text; a single character must stand at a blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
