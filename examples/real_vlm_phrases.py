"""Several ways to ask the same: a question of `real_vlm_scenes` in other words, its answer unchanged."""

from __future__ import annotations

import re

from numpy.random import Generator

from examples.questions.stills import Question, pick

# (pattern of a whole question, ways to ask it: \1, \2 stand for the parts in brackets)
PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"What is this\?", ("What is this?", "What do you see?", "What is in the picture?", "Name this thing.")),
    (
        r"What kind of thing is (on|at) (.+)\?",
        (r"What kind of thing is \1 \2?", r"Which category does the thing \1 \2 belong to?"),
    ),
    (
        r"What kind of thing is this\?",
        ("What kind of thing is this?", "Which category does this belong to?", "What type of thing do you see?"),
    ),
    (r"What is (on|at) (.+)\?", (r"What is \1 \2?", r"Name what is \1 \2.", r"What do you see \1 \2?")),
    (
        r"What is in the (\w+) picture\?",
        (r"What is in the \1 picture?", r"What does the \1 picture show?", r"Name what is in the \1 picture."),
    ),
    (r"Which picture shows the (.+)\?", (r"Which picture shows the \1?", r"In which picture is the \1?")),
    (r"Where is the (.+)\?", (r"Where is the \1?", r"In which place is the \1?", r"Where do you see the \1?")),
    (r"Is there (an?) (.+)\?", (r"Is there \1 \2?", r"Do you see \1 \2?", r"Does the picture show \1 \2?")),
    (
        r"What color is the (.+)\?",
        (r"What color is the \1?", r"Which color does the \1 have?", r"Name the color of the \1."),
    ),
    (r"What shape is (.+)\?", (r"What shape is \1?", r"Which shape is \1?", r"What is the \1 shape?")),
    (r"How many (.+) are there\?", (r"How many \1 are there?", r"How many \1 do you see?", r"Count the \1.")),
    (
        r"Describe the picture\.",
        ("Describe the picture.", "Describe what you see.", "What is in the picture? Answer in a sentence."),
    ),
    (
        r"Spell the word\.",
        ("Spell the word.", "Which letters are written here?", "Spell what is written in the picture."),
    ),
    (r"Read the word\.", ("Read the word.", "Which word is written here?", "What does it say?")),
    (r"Read the number\.", ("Read the number.", "Which number is written here?", "What number do you see?")),
    (
        r"What is the (\w+) (letter|digit)\?",
        (r"What is the \1 \2?", r"Which \2 comes \1?", r"Name the \1 \2."),
    ),
    (r"Which way does the (.+) move\?", (r"Which way does the \1 move?", r"In which direction does the \1 move?")),
    (r"What comes (.+)\?", (r"What comes \1?", r"What appears \1?", r"Name what comes \1.")),
)
_COMPILED = tuple((re.compile(pattern), ways) for pattern, ways in PHRASES)


def ways_to_ask(prompt: str) -> tuple[str, ...]:
    """All phrasings of a question; of one that no pattern matches, itself."""
    for pattern, ways in _COMPILED:
        if match := pattern.fullmatch(prompt):
            return tuple(match.expand(way) for way in ways)
    return (prompt,)


def rephrased(rng: Generator, question: Question) -> Question:
    """The question in one of its phrasings."""
    return Question(question.task, pick(rng, ways_to_ask(question.prompt)), question.answer)
