"""Does everyone say the same: ExecuTorch's stock runner, our session on ExecuTorch, other bundles of the student.

    python benchmarks/phone_texts.py PHONE_BUNDLE DATA [--other BUNDLE]... [--count 50] [--tokens 64]

Greedy answers to questions about pictures or text alone (stock runners take no clips), as texts. A bundle of the same
numbers (float32 for float32) must say the same; one that is quantized otherwise need not, and is counted all the same.
Exit code 1 if the stock runner and the session differ. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from linmu.bundle import open_bundle
from linmu.evaluation.benchmarks import detect, read_questions
from linmu.evaluation.questions import Question, choose
from linmu.processing import Processor
from linmu.runtimes.session import load
from linmu.runtimes.stock_runner import stock_answer


def session_texts(bundle: Path, questions: list[Question], tokens: int) -> list[str]:
    """What our session says, a fresh conversation for every question."""
    said = []
    with load(bundle) as session:
        for question in questions:
            session.reset()
            said.append(session.generate(question.prompt, question.pictures(), max_new_tokens=tokens).text)
    return said


def stock_texts(bundle: Path, questions: list[Question], tokens: int) -> list[str]:
    """What the stock runner says, without the end token that it may pass on."""
    opened = open_bundle(bundle)
    processor = Processor.from_folder(bundle)
    ends = [processor.tokenizer.id_to_token(token) or "" for token in processor.eos_token_ids]
    said = []
    for question in questions:
        text = "".join(stock_answer(opened, question.prompt, question.pictures(), tokens))
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
    wanted = session_texts(args.bundle, questions, args.tokens)
    said = {"stock runner": stock_texts(args.bundle, questions, args.tokens)}
    said |= {bundle.name: session_texts(bundle, questions, args.tokens) for bundle in args.other}
    found = {name: sum(a == b for a, b in zip(texts, wanted, strict=True)) for name, texts in said.items()}
    pictures = sum(bool(question.images) for question in questions)
    for name, texts in said.items():
        print(f"{name}: {found[name]} of {len(questions)} texts are the session's")
        for question, text, other in zip(questions, texts, wanted, strict=True):
            if text != other:
                print(f"  {question.id}: {text!r}, the session {other!r}", file=sys.stderr)
    print(json.dumps({"questions": len(questions), "with_pictures": pictures, "equal": found}))
    return 0 if found["stock runner"] == len(questions) else 1


if __name__ == "__main__":
    sys.exit(main())
