"""A tiny student of one layer, exported once for all tests of a module: lowering takes seconds a layer."""

from __future__ import annotations

from pathlib import Path

import torch

from linmu.export.targets import write_bundle
from linmu.model.folders import load_student
from tests import tiny
from tests.folders import student_folder


def one_layer(family: str, root: Path, monkeypatch) -> Path:
    """A student folder with one decoder layer that says letters only: runners cannot pass parts of characters."""
    monkeypatch.setattr(tiny, "LAYERS", 1)
    folder = student_folder(family, root)
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
