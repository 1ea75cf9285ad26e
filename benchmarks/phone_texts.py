"""Does everyone say the same: ExecuTorch's stock runner, our session on ExecuTorch, other bundles of the student.

    python benchmarks/phone_texts.py PHONE_BUNDLE DATA [--other BUNDLE]... [--count 50] [--tokens 64]

Greedy answers to questions about pictures or text alone (stock runners take no clips), as texts. A bundle of the same
numbers (float32 for float32) must say the same; one that is quantized otherwise need not, and is counted all the same.
Texts are compared up to the first token that is a part of a character, which the stock runner's binding cannot pass on.
Exit code 1 if the stock runner and the session differ. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from linmu.evaluation.benchmarks import detect, read_questions
from linmu.evaluation.questions import Question, choose
from linmu.formats.bundle import open_bundle
from linmu.processing import Processor
from linmu.runtimes.session import load
from linmu.runtimes.stock_runner import stock_answer
from linmu.verification.stock import PARTIAL, written


def session_tokens(bundle: Path, questions: list[Question], tokens: int) -> list[list[int]]:
    """What our session says, a fresh conversation for every question, without end tokens."""
    said = []
    with load(bundle) as session:
        for question in questions:
            session.reset()
            made = session.generate(question.prompt, question.pictures(), max_new_tokens=tokens).token_ids
            said.append([token for token in made if token not in session.processor.eos_token_ids])
    return said


def whole_characters(processor: Processor, said: list[int]) -> int:
    """Tokens in front of the first that is a part of a character: the stock runner's binding passes on no such one."""
    return next((i for i, token in enumerate(said) if PARTIAL in processor.decode([token])), len(said))


def stock_texts(bundle: Path, questions: list[Question], tokens: list[int]) -> list[str]:
    """What the stock runner says in so many tokens, without the end token that it may pass on."""
    opened = open_bundle(bundle)
    processor = Processor.from_folder(bundle)
    ends = [processor.tokenizer.id_to_token(token) or "" for token in processor.eos_token_ids]
    said = []
    for question, count in zip(questions, tokens, strict=True):
        try:
            text = "".join(stock_answer(opened, question.prompt, question.pictures(), count))
        except UnicodeDecodeError:
            text = PARTIAL  # where the session said a whole one: something else
        said.append(next((text.removesuffix(end) for end in ends if end and text.endswith(end)), text))
    return said


def main() -> int:
    """Ask, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--other", type=Path, action="append", default=[])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    questions = read_questions(args.data, detect(args.data))
    questions = choose([question for question in questions if question.video is None], args.count, 0)
    processor, spoken = Processor.from_folder(args.bundle), session_tokens(args.bundle, questions, args.tokens)
    counts = [whole_characters(processor, ids) for ids in spoken]
    asked = [place for place, count in enumerate(counts) if count or not spoken[place]]  # an answer may end at once
    questions, spoken, counts = ([items[place] for place in asked] for items in (questions, spoken, counts))
    wanted = [written(processor, ids[:count]) for ids, count in zip(spoken, counts, strict=True)]
    # an answer that ends earlier than it may is asked for a token more, so that the runner has to end it, too
    room = [c + (c == len(ids) < args.tokens) for ids, c in zip(spoken, counts, strict=True)]
    said = {"stock runner": stock_texts(args.bundle, questions, room)}
    for bundle in args.other:
        others = session_tokens(bundle, questions, args.tokens)
        said[bundle.name] = [written(processor, ids[:count]) for ids, count in zip(others, counts, strict=True)]
    found = {name: sum(a == b for a, b in zip(texts, wanted, strict=True)) for name, texts in said.items()}
    pictures = sum(bool(question.images) for question in questions)
    for name, texts in said.items():
        print(f"{name}: {found[name]} of {len(questions)} texts are the session's")
        for question, text, other in zip(questions, texts, wanted, strict=True):
            if text != other:
                print(f"  {question.id}: {text!r}, the session {other!r}", file=sys.stderr)
    print(
        json.dumps(
            {
                "questions": len(questions),
                "with_pictures": pictures,
                "tokens": sum(counts),
                "ended_at_once": sum(not ids for ids in spoken),
                "equal": found,
            }
        )
    )
    return 0 if found["stock runner"] == len(questions) else 1


if __name__ == "__main__":
    sys.exit(main())
