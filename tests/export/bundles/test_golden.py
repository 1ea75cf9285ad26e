"""Golden answers end where the reference itself cannot tell which token comes next."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linmu.export.bundles import golden
from linmu.formats.bundle import open_bundle
from linmu.model.folders import load_student
from linmu.processing import Processor
from linmu.reference.eager import StudentRunner
from linmu.verification.compare import NOISE_ROOM, WIDEST_LOGITS
from linmu.verification.golden import TEXT_PROMPT
from tests.exports import export_bundle
from tests.folders import student_folder

TOKENS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(student folder, bundle folder)."""
    student = student_folder("llama", tmp_path_factory.mktemp("llama"))
    bundle = tmp_path_factory.mktemp("bundle") / "bundle"
    export_bundle(student, bundle)
    return student, bundle


def _answer(place, moved: float):
    """The golden answer where the reference's twin has every weight moved by so much of its deviation."""
    student, other = load_student(place[0]), load_student(place[0])
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight += moved * weight.std(correction=0) * torch.randn(weight.shape)
    runners = (StudentRunner(student), StudentRunner(other))
    manifest = open_bundle(place[1]).manifest
    processor = Processor.from_folder(place[1])
    return golden._answer("text", TEXT_PROMPT, (), place[1], runners, manifest, processor, TOKENS)


def test_an_answer_ends_before_the_first_token_that_noise_decides(place) -> None:
    whole, cut = _answer(place, 0.0), _answer(place, 0.2)
    assert len(whole["token_ids"]) == whole["max_new_tokens"] == TOKENS and not np.any(whole["noise"])
    count = len(cut["token_ids"])
    assert 1 <= count < TOKENS and cut["max_new_tokens"] == len(cut["gaps"]) == len(cut["noise"]) == count
    assert cut["token_ids"] == whole["token_ids"][:count]
    assert all(
        gap > 2 * NOISE_ROOM * noise or noise <= golden.SHOWN * WIDEST_LOGITS
        for gap, noise in zip(cut["gaps"][1:], cut["noise"][1:], strict=True)
    )


def test_noise_that_decides_nothing_shortens_no_answer(place) -> None:
    found = _answer(place, 1e-4)
    assert found["token_ids"] == _answer(place, 0.0)["token_ids"] and 0 < max(found["noise"]) <= golden.SHOWN * 0.1
