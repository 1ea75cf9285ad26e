"""Texts out of packages, planted facts and distances: the example that distills a language model on real text."""

from __future__ import annotations

import sys

import pytest
import torch

from linmu.config import MMateConfig, converted_with
from linmu.conversion.convert import convert
from linmu.errors import InputError
from tests.examples.stamp_files import write_package
from tests.paths import ROOT
from tests.tiny import tiny_model

PARAGRAPH = "A page of this book says one thing, and it says the same thing on every page of it. " * 4
PAGE = f"<head><title>no text</title></head><nav>Menu</nav><p>{PARAGRAPH}</p><p>short</p><pre>{PARAGRAPH}</pre>"


@pytest.fixture(scope="module", autouse=True)
def as_script():
    """Examples are importable as when one of them is run."""
    sys.path.insert(0, str(ROOT / "examples"))
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield
    sys.path.remove(str(ROOT / "examples"))
    sys.path.remove(str(ROOT / "benchmarks"))


def long_page(number: int) -> bytes:
    return "".join(f"<p>Page {number}, part {part}. {PARAGRAPH}</p>" for part in range(5)).encode()


def test_pages_are_english_long_told_apart_and_held_out_by_name(tmp_path):
    from real_text import pages

    files = {f"./usr/share/doc/book/html/en-US/{number}.html": long_page(number) for number in range(40)}
    files |= {f"./usr/share/doc/book/html/{number}.de.html": long_page(100 + number) for number in range(3)}
    files["./usr/share/doc/book/html/en-US/again.html"] = long_page(7)
    files["./usr/share/doc/book/short.html"] = PAGE.encode()
    files["./usr/share/perl/guide.pod"] = f"=head1 NAME\n\nUse C<print> and B<<bold>>. {PARAGRAPH * 6}\n".encode()
    found = pages([write_package(tmp_path / "book.deb", files)])
    assert len(found) == 41
    assert 0 < sum(page.held_out for page in found) < 10
    assert any(page.text.startswith("Use print and bold.") for page in found) or "NAME" in found[-1].text
    assert not any("<p>" in page.text or "Menu" in page.text for page in found)
    assert [page.held_out for page in pages([tmp_path / "book.deb"])] == [page.held_out for page in found]


def test_what_is_hidden_or_short_is_left_out():
    from pathlib import PurePosixPath

    from real_text import _flowing, _plain

    text = _flowing(_plain(PurePosixPath("page.html"), PAGE))
    assert text == "\n\n".join([PARAGRAPH.strip()] * 2)


def test_packages_without_pages_are_named(tmp_path):
    from real_text import pages

    with pytest.raises(InputError, match="no English pages.*apt-get download"):
        pages([write_package(tmp_path / "odd.deb", {"./usr/share/doc/odd/copyright": b"free"})])
    (tmp_path / "text.deb").write_text("no package")
    with pytest.raises(InputError, match="not a Debian package"):
        pages([tmp_path / "text.deb"])


def test_contexts_have_one_length_and_one_side():
    from real_text import Page, contexts

    _, tokenizer = tiny_model("llama")
    source = [Page("one two three four five " * 30, False), Page("six seven " * 40, True)]
    kept, held = (contexts(source, tokenizer, 11, side) for side in (False, True))
    assert kept and held and not set(kept) & set(held)
    assert all("six" not in text for text in kept)
    assert kept == contexts(source, tokenizer, 11, False)


def test_distance_and_recall_are_those_of_the_models_own_logits():
    from agreement import distance, greedy_agreement, token_rows
    from needle import recall

    teacher, tokenizer = tiny_model("llama")
    other, _ = tiny_model("llama")
    student = convert(other, MMateConfig(text_window=3, chunk_size=4))
    rows = token_rows(tokenizer, ["one two three four five six " * 30] * 2, 17)
    assert rows.shape == (2, 17)
    found = distance(teacher, student, rows)
    with torch.no_grad():
        p, q = (model(input_ids=rows).logits.double().log_softmax(-1) for model in (teacher, student))
    kl = (p.exp() * (p - q)).sum(-1)
    assert found["kl"] == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found["kl_second_half"] == pytest.approx(float(kl[:, 8:].mean()), rel=1e-4)
    assert distance(teacher, student, rows, window=False)["kl"] > 1.01 * found["kl"]
    assert distance(teacher, student, rows) == found  # the window is back
    assert distance(teacher, teacher_like(teacher), rows)["kl"] == pytest.approx(0, abs=1e-6)
    assert greedy_agreement(teacher, teacher, rows)["equal_tokens"] == 1.0
    facts = recall(student, tokenizer, ["some words that are read between"] * 9, (5, 13), 3)
    assert set(facts) == {5, 13} and all(0 < value["probability"] < 1 for value in facts.values())


def teacher_like(teacher):
    """A student whose window has seen all: the teacher itself."""
    import copy

    return convert(copy.deepcopy(teacher), MMateConfig(text_window=64))


def test_every_cell_of_the_ablation_is_a_block_and_a_recipe():
    from fidelity import CELLS, recipe_of

    for name, (settings, _, share) in CELLS.items():
        converted_with(settings)
        recipe = recipe_of(name, 100_000)
        assert sum(stage.steps for stage in recipe.stages) == pytest.approx(49, abs=1)
        assert [stage.name for stage in recipe.stages] == ["layers"] * (share > 0) + ["answers"] * (share < 1)
