"""Scoring rules against values worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from linmu.evaluation import mmmu_rules, vqa_rules
from linmu.evaluation.questions import Question
from linmu.evaluation.scoring import RULES

OPTIONS = ("red fox", "blue jay", "green frog", "grey wolf")


def ask(rule: str, text: str, *answers: str, choices: tuple[str, ...] = (), name: str = "q"):
    return RULES[rule](text, Question(name, "?", answers, rule, choices=choices))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("three", 1),
        (" three\n", 1),
        ("3", 1),
        ("Three", 0),
        ("three.", 0),
        ("three four", 0),
        ("", 0),
    ],
)
def test_exact_match(text, score):
    assert ask("exact", text, "three", "3").score == score


def test_exact_match_takes_other_spellings_of_the_same_text():
    assert ask("exact", "a  cafe\u0301 ", "a caf\u00e9").score == 1
    assert ask("exact_ignoring_case", "STRASSE", "Stra\u00dfe").score == 1
    assert ask("exact_ignoring_case", "STRASS", "Stra\u00dfe").score == 0
    assert ask("exact", "Red", "red").score == 0


# 10 people: n who agree give (n * min(1, (n-1)/3) + (10-n) * min(1, n/3)) / 10
@pytest.mark.parametrize(("agree", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_ten_people(agree, score):
    people = ["coca cola"] * agree + [f"other {i}" for i in range(10 - agree)]
    assert ask("vqa", "Coca-Cola", *people).score == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The STOP sign.", "stop sign"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("3.5", "3.5"),
        ("10.", "10"),
        ("1,000", "1000"),
        ("a/b", "b"),
        ("red / blue", "red blue"),
        ("wi-fi", "wi fi"),
        ("well-known - yes", "wellknown yes"),
        ("John's", "john 's"),
        ("(yes)", "yes"),
        ("what?", "what"),
        ("wouldntve", "wouldntve"),
        ("wouldn'tve", "wouldn't've"),
        ("an apple\na day", "apple day"),
        ("eleven", "eleven"),
        ("it's @ 9", "it 's 9"),
        ("", ""),
    ],
)
def test_vqa_normalisation(text, wanted):
    assert vqa_rules.normalised(text) == wanted


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("B.", "B"),
        ("Answer: D", "D"),
        ("It is A or B", "B"),
        ("(A) rather than (B)", "B"),
        ("(A), not B", "A"),
        ("C. green frog", "C"),
        ("USA", ""),
        ("green frog", ""),
        ("So it flies:\nB", "B"),
        ("A. no, C. is it", "C"),
        ("I am sure that it is a Green Frog", "C"),
        ("the red fox and the grey wolf are both here", "D"),
        ("b", ""),
    ],
)
def test_mmmu_letters(text, letter):
    assert mmmu_rules.chosen_letter(text, OPTIONS) == letter


def test_mmmu_guesses_where_it_cannot_read():
    right = ask("mmmu_choice", "I think (B)", "B", choices=OPTIONS)
    assert (right.score, right.answer, right.guessed) == (1, "B", False)
    guesses = [ask("mmmu_choice", "no idea", "B", choices=OPTIONS, name=f"q{i}") for i in range(400)]
    assert all(verdict.guessed for verdict in guesses)
    counts = Counter(verdict.answer for verdict in guesses)
    assert sorted(counts) == list("ABCD") and min(counts.values()) > 60
    assert sum(verdict.score for verdict in guesses) == counts["B"]
    again = [ask("mmmu_choice", "other words", "B", choices=OPTIONS, name=f"q{i}").answer for i in range(400)]
    assert again == [verdict.answer for verdict in guesses]  # the same whatever was asked before


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("The answer is 12.0", ("12",), 1),
        ("12 apples", ("12",), 1),
        ("112", ("12",), 0),
        ("x = 1,234.", ("1234",), 1),
        ("3.14159", ("3.14",), 1),
        ("So the result is a mitochondrion", ("Mitochondrion",), 1),
        ("ribosome", ("mitochondrion", "ribosome"), 1),
        ("variable", ("a",), 0),
        ("option a here", ("a",), 1),
        ("1.5e3 volts", ("1500",), 1),
        ("", ("1",), 0),
    ],
)
def test_mmmu_open_answers(text, answers, score):
    assert ask("mmmu_open", text, *answers).score == score


def test_mmmu_open_candidates():
    # of every line the shortest tail behind a key word; the last line may be an equation
    assert mmmu_rules.open_candidates("It could be so that y is 4\nthus z = 7") == [4.0, 7.0]
    assert mmmu_rules.open_candidates("y = 4\nfinal: done") == ["y = 4\nfinal: done", 4.0]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("The best answer is B", "B"),
        ("Best option: D", "D"),
        ("(A) because B", "A"),
        ("d", ""),
        ("The answer is that nothing can be seen", ""),
        ("Dogs", "D"),
        ("E", ""),
    ],
)
def test_the_first_letter(text, letter):
    found = ask("letter", text, "B", choices=OPTIONS)
    assert (found.answer, found.score, found.guessed) == (letter, float(letter == "B"), False)


def test_longvideobench_guesses_among_its_options():
    two = [ask("letter_or_guess", "nothing here", "A", choices=("x", "y"), name=f"v{i}") for i in range(100)]
    assert all(verdict.guessed for verdict in two) and {verdict.answer for verdict in two} == {"A", "B"}
    found = ask("letter_or_guess", "E.", "E", choices=("v", "w", "x", "y", "z"))
    assert (found.answer, found.score, found.guessed) == ("E", 1, False)
