"""How a generated text is scored: one rule a question, named in a literal table; every rule gives 0..1."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from linmu.evaluation import mmmu_rules, vqa_rules
from linmu.evaluation.questions import Question

# Phrases that models put before a letter; longer ones first, so that none leaves a capital letter of another behind.
ANSWER_PHRASES = (
    "The best answer is",
    "The correct answer is",
    "The best option is",
    "The correct option is",
    "The answer is",
    "The answer",
    "Best answer:",
    "Best option:",
)


@dataclass(frozen=True)
class Verdict:
    """A score in 0..1, the answer that was read from the text, and whether it had to be guessed."""

    score: float
    answer: str
    guessed: bool = False


def normalised(text: str, ignore_case: bool = False) -> str:
    """A text without outer white space, runs of white space as one blank, in Unicode's composed form (NFC)."""
    plain = " ".join(unicodedata.normalize("NFC", text).split())
    return plain.casefold() if ignore_case else plain


def exact(text: str, question: Question) -> Verdict:
    """Right when the whole text is one of the accepted answers, `normalised`."""
    return _exact(text, question, ignore_case=False)


def exact_ignoring_case(text: str, question: Question) -> Verdict:
    """As `exact`, capitals and small letters alike."""
    return _exact(text, question, ignore_case=True)


def _exact(text: str, question: Question, ignore_case: bool) -> Verdict:
    normal = normalised(text, ignore_case)
    accepted = {normalised(answer, ignore_case) for answer in question.answers}
    return Verdict(float(normal in accepted), normal)


def letter(text: str, question: Question) -> Verdict:
    """Video-MME: the first capital letter of an option, common phrases left out; none is wrong."""
    chosen = _first_letter(text, question)
    return Verdict(float(chosen in question.answers), chosen)


def letter_or_guess(text: str, question: Question) -> Verdict:
    """LongVideoBench: as `letter`, but a text without a letter counts as a guess among the options."""
    chosen = _first_letter(text, question)
    if chosen:
        return Verdict(float(chosen in question.answers), chosen)
    return _guess(question)


def mmmu_choice(text: str, question: Question) -> Verdict:
    """MMMU, multiple choice: the last letter named, or the option quoted; else a guess among the options."""
    chosen = mmmu_rules.chosen_letter(text, question.choices)
    return Verdict(float(chosen in question.answers), chosen) if chosen else _guess(question)


def mmmu_open(text: str, question: Question) -> Verdict:
    """MMMU, open question: a number that equals the answer, or a key phrase that contains it."""
    candidates = mmmu_rules.open_candidates(text)
    right = mmmu_rules.is_right(candidates, question.answers)
    return Verdict(float(right), " | ".join(str(candidate) for candidate in candidates))


def vqa(text: str, question: Question) -> Verdict:
    """TextVQA: the share of people who agree, three being enough, averaged over leaving each of them out."""
    normal = vqa_rules.normalised(text)
    return Verdict(vqa_rules.accuracy(normal, [vqa_rules.normalised(answer) for answer in question.answers]), normal)


def option_letters(count: int) -> list[str]:
    """The letters of `count` options: A, B, ..."""
    return [chr(ord("A") + place) for place in range(count)]


def _first_letter(text: str, question: Question) -> str:
    for phrase in ANSWER_PHRASES:
        text = text.replace(phrase, "")
    match = re.search(f"[{''.join(option_letters(len(question.choices)))}]", text)
    return match.group() if match else ""


def _guess(question: Question) -> Verdict:
    """Seeded by the question: the same in every run, whatever was asked before it."""
    chosen = random.Random(question.id).choice(option_letters(len(question.choices)))
    return Verdict(float(chosen in question.answers), chosen, guessed=True)


Rule = Callable[[str, Question], Verdict]
RULES: dict[str, Rule] = {
    "exact": exact,
    "exact_ignoring_case": exact_ignoring_case,
    "letter": letter,
    "letter_or_guess": letter_or_guess,
    "mmmu_choice": mmmu_choice,
    "mmmu_open": mmmu_open,
    "vqa": vqa,
}
