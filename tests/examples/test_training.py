"""What vision tokens are told they show, from the marks of a scene."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from examples.questions.content import COLORS
from examples.questions.drawing import SIDE, Mark
from tests.paths import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def training():
    """The module, importable as when a script beside it runs."""
    sys.path.insert(0, str(EXAMPLES))
    import training

    yield training
    sys.path.remove(str(EXAMPLES))


def test_cells_of_marks(training):
    cell = SIDE / 5
    marks = (
        Mark(1.5 * cell, 2.5 * cell, "star", "blue"),
        Mark(SIDE + 3, -2, "Q"),  # what stands over the edge counts for the last cell
        Mark(0.2 * cell, 4.1 * cell, "I"),
        Mark(0.7 * cell, 4.2 * cell, "L"),  # two in one cell: neither is taught
    )
    found = training.cells(marks, 5)
    assert found.shape == (25, 2)
    assert found[11].tolist() == [training.CONTENTS.index("star"), list(COLORS).index("blue")]
    assert found[4].tolist() == [training.CONTENTS.index("Q"), training.UNSURE]
    assert found[20].tolist() == [training.UNSURE, training.UNSURE]
    others = np.delete(found, [11, 4, 20], axis=0)
    assert (others[:, 0] == 0).all() and (others[:, 1] == training.UNSURE).all()


def test_a_scene_becomes_a_conversation(training):
    from examples.questions.generate import sample

    scene = sample("images", "train", 0, 1).scene
    messages = training.conversation(scene, turns=2)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert [part["type"] for part in messages[0]["content"]] == ["image"] * len(scene.images) + ["text"]
    assert [part["type"] for part in messages[2]["content"]] == ["text"]
