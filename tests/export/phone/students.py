"""A tiny student of one layer, exported once for all tests of a module: lowering takes seconds a layer."""

from __future__ import annotations

from pathlib import Path

import torch

from linmu.export.targets import write_bundle
from linmu.formats.bundle import open_bundle
from linmu.model.folders import load_student
from linmu.runtimes.et_runner import EtRunner, muted, open_program
from tests import tiny
from tests.folders import student_folder


def one_layer(family: str, root: Path, monkeypatch, **settings) -> Path:
    """A student folder with one decoder layer that says letters only: runners cannot pass parts of characters."""
    monkeypatch.setattr(tiny, "LAYERS", 1)
    folder = student_folder(family, root, **settings)
    student = load_student(folder)
    vocab = tiny.tiny_tokenizer(family).get_vocab()
    letters = [place for token, place in vocab.items() if len(token) == 1 and token.isascii()]
    with torch.no_grad():
        table = student.get_output_embeddings().weight
        silent = torch.ones(len(table), dtype=torch.bool).index_fill(0, torch.tensor(letters), False)
        table[silent] = 0  # logits 0, and some letter's is above
    student.save_pretrained(folder, save_original_format=False)
    return folder


def phone_bundle(student: Path, out: Path, target: str = "android"):
    """(bundle folder, export report)."""
    return out, write_bundle(student, out, target=target)


def unequal_steps(folder: Path, tokens: int) -> list[int]:
    """Positions at which `step` and what the stock runners call on one token give other logits, to the bit."""
    bundle = open_bundle(folder)
    program = open_program(folder / "model.pte")
    text_only = "forward" in program.method_names
    with muted():
        stock = program.load_method("forward" if text_only else "text_decoder")
        table = program.load_method("token_embedding")
    found, letters = [], [3 + 7 * place % 40 for place in range(tokens)]
    with EtRunner(bundle) as runner:
        state = runner.new_state()
        for place, token in enumerate(letters):
            ids = torch.tensor([[token]])
            given = ids if text_only else table.execute([ids])[0]
            said = stock.execute([given, torch.tensor([place])])[0].clone()
            if not torch.equal(said[0, 0], torch.from_numpy(runner.step(token, place, place, state))):
                found.append(place)
    return found
