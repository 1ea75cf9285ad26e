"""The VQA accuracy of TextVQA: answers normalised, then compared with those of ten people."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

ENOUGH = 3  # people who must agree
ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(value) for value, word in enumerate(NUMBER_WORDS)}}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")  # a decimal point stays
MOST_PERIODS = 32  # the benchmark's code removes no more: it passes a flag where the count stands

# A word that lacks one of its apostrophes gets it back. 's never occurs here: it was cut off before.
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
ODD = {"somebody'd": "somebodyd"}  # the benchmark has this one the wrong way round


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, character in enumerate(word) if character == "'"]


RESTORED = {short: word for word in CONTRACTIONS for short in _without_one_apostrophe(word)} | ODD


def accuracy(answer: str, people: Sequence[str]) -> float:
    """The mean over leaving one person out of min(1, those of the others who say `answer` / 3); texts normalised."""
    agree = sum(other == answer for other in people)
    return fmean(min(1.0, (agree - (other == answer)) / ENOUGH) for other in people)


def normalised(text: str) -> str:
    """A text as the benchmark compares it: lowered, without punctuation and articles, number words as digits."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark at a blank goes; between letters it becomes a blank."""
    plain = text
    for mark in PUNCTUATION:
        plain = plain.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    return PERIOD.sub("", plain, count=MOST_PERIODS)
