"""A bundle asked as a server asks it, with kept states and without; needs no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from linmu.formats.bundle import open_bundle
from linmu.processing import Processor
from linmu.processing.known_media import KnownMedia
from linmu.runtimes.backends import open_runner
from linmu.serving.prefixes import Prefixes

PLENTY = 1 << 28
LONG = "What do you see here, and which colour has the square in the corner of it? Tell me more about it, please."


class Server:
    """One bundle in one runner, asked as a server asks it."""

    def __init__(self, folder: Path, threads: int = 1):
        self.bundle = open_bundle(folder, verify_hashes=False)
        self.runner, self.threads = open_runner(self.bundle, "onnxruntime", threads), threads
        plain = Processor.from_folder(folder, self.bundle.manifest.model.vocab_size)
        self.processor = replace(plain, known=KnownMedia())

    def prefixes(self, cache=None, **options) -> Prefixes:
        return Prefixes(self.bundle, self.runner, self.processor, cache, threads=self.threads, **options)

    def read(self, prefixes: Prefixes, inputs, keep: bool = True):
        """(logits, states, reading) of a whole prompt."""
        state = self.runner.new_state()
        reading = prefixes.begin(prefixes.plan(inputs, keep), state)
        while (logits := reading.advance()) is None:
            pass
        assert reading.tokens_left == 0
        return logits.copy(), state.read(), reading

    def cached(self, prefixes: Prefixes, inputs) -> int:
        """Tokens that need not be read; what is read otherwise is the same to the bit."""
        logits, states, reading = self.read(prefixes, inputs)
        wanted, wanted_states, plain = self.read(self.prefixes(max_piece_tokens=prefixes._most), inputs)
        assert np.array_equal(logits, wanted) and plain.cached_tokens == 0
        assert all(np.array_equal(states[name], value) for name, value in wanted_states.items())
        assert reading.next_position == plain.next_position and reading.tokens == len(inputs.input_ids)
        return reading.cached_tokens


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((200, 160)))


def talk(turns: int, pictures: dict[int, list[np.ndarray]] | None = None, text_only: bool = False) -> list[dict]:
    """A conversation that ends with the question of turn `turns`; pictures: by turn, counted from 0."""
    pictures = {turn: [picture(turn)] for turn in (0, 4, 9)} if pictures is None else pictures
    messages = []
    for turn in range(turns):
        question, answer = f"{turn}: {LONG}", f"In picture {turn} there is a red square, and something that is blue."
        if text_only:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            continue
        shown = [{"type": "image", "image": item} for item in pictures.get(turn, [])]
        messages.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages[:-1]
