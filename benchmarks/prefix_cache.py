"""What kept states save, and what cuts for them cost: time to the first token, in turns, on one runner.

    python benchmarks/prefix_cache.py BUNDLE [--turns 20] [--threads 2] [--rounds 11]

A conversation with three pictures (turns 1, 5 and 10; JPEG, 640 x 480), each message two sentences. Its last turn is
read with the states of the turn before in memory, with the same states in a folder, without kept states (pieces cut as
always), and cut by the limit of a piece alone (as if no state were ever kept). Times begin with the messages: template,
tokenizer and pictures are in them. Three short prompts say what cuts cost who never comes back. Also: bytes and copies
of a state. Prints tables (medians) and a JSON line.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import finish, interleave, machine, medians, say, table, timed
from PIL import Image

from linmu.families import get_family
from linmu.formats.bundle import open_bundle
from linmu.processing import Processor
from linmu.processing.known_media import KnownMedia
from linmu.runtimes.backends import open_runner
from linmu.runtimes.prompt import place_prompt, prompt_pieces
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.prefixes import Prefixes
from linmu.serving.state_folder import StateFolder

PICTURE_TURNS = (0, 4, 9)
PLENTY = 1 << 32
QUESTION = (
    "{}: what is to be seen here, and how does it differ from what was there before? Answer in a sentence or two."
)
ANSWER = "In number {} there is a street with two cars. It is brighter than before, and nobody walks there any more."


class Asked:
    """A bundle and the ways to read a prompt; `read` gives the states kept on the way."""

    def __init__(self, folder: Path, threads: int):
        self.bundle = open_bundle(folder)
        self.runner, self.threads = open_runner(self.bundle, "auto", threads), threads
        self.plain = Processor.from_folder(folder, self.bundle.manifest.model.vocab_size)
        self.known = replace(self.plain, known=KnownMedia())
        self.state = self.runner.new_state()
        self.prefixes = Prefixes(self.bundle, self.runner, self.known, threads=threads)

    def keeping(self, cache: PrefixCache, messages: list[dict]) -> int:
        """Read a prompt with kept states -> tokens that were cached."""
        self.prefixes.cache = cache
        reading = self.prefixes.begin(self.prefixes.plan(self.known.encode(messages)), self.state)
        while reading.advance() is None:
            pass
        return reading.cached_tokens

    def always_cut(self, messages: list[dict]) -> None:
        """Read a prompt in the pieces it always has, keeping nothing."""
        self.prefixes.cache = None
        reading = self.prefixes.begin(self.prefixes.plan(self.plain.encode(messages)), self.state)
        while reading.advance() is None:
            pass

    def limit_only(self, messages: list[dict]) -> None:
        """Read a prompt cut by the limit of a piece alone."""
        self.state.zero()
        inputs, manifest = self.plain.encode(messages), self.bundle.manifest
        for piece in prompt_pieces(inputs, self.runner, manifest, place_prompt(inputs, manifest)):
            self.runner.prefill(piece, self.state)


def jpeg(seed: int) -> bytes:
    """A smooth random picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def talk(turns: int, text_only: bool) -> list[dict]:
    """The messages up to the question of turn `turns`."""
    messages = []
    for turn in range(turns):
        question, answer = QUESTION.format(turn + 1), ANSWER.format(turn + 1)
        shown = [{"type": "image", "image": jpeg(turn)}] if turn in PICTURE_TURNS and not text_only else []
        content: Any = question if text_only else [*shown, {"type": "text", "text": question}]
        said: Any = answer if text_only else [{"type": "text", "text": answer}]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": said}]
    return messages[:-1]


def short_prompts(text_only: bool) -> dict[str, list[dict]]:
    """Prompts of people who ask once."""

    def user(text: str, *shown: dict) -> list[dict]:
        return [{"role": "user", "content": text if text_only else [*shown, {"type": "text", "text": text}]}]

    prompts = {"question": user(QUESTION.format(1)), "page of text": user(" ".join([ANSWER.format(1)] * 20))}
    if not text_only:
        prompts["picture and question"] = user(QUESTION.format(1), {"type": "image", "image": jpeg(1)})
    return prompts


def last_turn(asked: Asked, turns: int, rounds: int, folder: Path) -> tuple[list[dict], dict]:
    """Rows of the last turn, and facts of its prompt."""
    text_only = get_family(asked.bundle.manifest.model.family).text_only
    before, now = talk(turns - 1, text_only), talk(turns, text_only)
    with PrefixCache(PLENTY, StateFolder(folder, asked.bundle, PLENTY)) as cache:
        for turn in range(1, turns):
            asked.keeping(cache, talk(turn, text_only))
        plan = asked.prefixes.plan(asked.known.encode(now))
        found = cache.longest(plan.keys)
        assert found is not None
        kept = cache.statistics()

    def in_memory() -> float:
        with PrefixCache(PLENTY) as fresh:  # the turn itself was never read
            fresh.put(plan.keys[found[0]], found[1])
            return timed(partial(asked.keeping, fresh, now))

    def in_folder() -> float:
        with PrefixCache(0, StateFolder(folder, asked.bundle, PLENTY)) as fresh:
            taken = timed(partial(asked.keeping, fresh, now))
        for key in plan.keys[found[0] + 1 :]:
            (folder / f"linmu-prefix-{key}.state").unlink(missing_ok=True)
        return taken

    cases: dict[str, Callable[[], float]] = {
        "kept in memory": in_memory,
        "kept in a folder": in_folder,
        "nothing kept": partial(timed, partial(asked.always_cut, now)),
        "cut by the limit alone": partial(timed, partial(asked.limit_only, now)),
    }
    interleave(cases, 1)
    seconds = medians(interleave(cases, rounds))
    facts = {
        "prompt_tokens": plan.placed.layout.length,
        "cached_tokens": plan.cuts[found[0]][1],
        "pieces": len(plan.cuts),
        "new_tokens": plan.placed.layout.length - len(asked.known.encode(before).input_ids),
        "states_kept": kept.entries,
        "kept_bytes": kept.bytes,
    }
    return [{"last turn": name, "first token ms": value * 1e3} for name, value in seconds.items()], facts


def cut_costs(asked: Asked, rounds: int) -> list[dict]:
    """Rows of short prompts: the time with the cuts and without them."""
    rows = []
    for name, messages in short_prompts(get_family(asked.bundle.manifest.model.family).text_only).items():
        cases = {"cut": partial(asked.always_cut, messages), "whole": partial(asked.limit_only, messages)}
        samples = interleave({key: partial(timed, call) for key, call in cases.items()}, rounds)
        ratios = [a / b for a, b in zip(samples["cut"], samples["whole"], strict=True)]
        middle = medians({**samples, "ratio": ratios})
        plan = asked.prefixes.plan(asked.plain.encode(messages))
        sizes = {"tokens": plan.placed.layout.length, "pieces": len(plan.cuts)}
        times = {"cut ms": middle["cut"] * 1e3, "whole ms": middle["whole"] * 1e3, "ratio": middle["ratio"]}
        rows.append({"prompt": name, **sizes, **times})
    return rows


def main() -> None:
    """Measure one bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    asked = Asked(args.bundle, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        turns, facts = last_turn(asked, args.turns, args.rounds, Path(folder))
    cuts = cut_costs(asked, args.rounds)
    tensors = asked.state.read()
    copies = {"state_bytes": asked.state.nbytes, "copy_ms": timed(asked.state.read, 20) * 1e3}
    copies["write_ms"] = timed(partial(asked.state.write, tensors), 20) * 1e3
    say(table(turns) + "\n\n" + table(cuts))
    finish({"turns": turns, "facts": facts, "cuts": cuts, "state": copies, "machine": machine()})


if __name__ == "__main__":
    main()
