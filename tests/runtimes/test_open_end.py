"""The open end of a conversation as state files hold it."""

from __future__ import annotations

import json

import pytest

from linmu.runtimes.conversation import Conversation, OpenEnd

ASKED = {"role": "user", "content": [{"type": "video"}]}
END = {"tail": "\n\n", "reached": 7}


def test_it_comes_back_from_a_file():
    talk = Conversation((ASKED,), "User: <video>", (3, 4), (None,), OpenEnd("\n\n", 7))
    assert Conversation.from_json(json.loads(json.dumps(talk.to_json()))) == talk
    assert "open_end" not in Conversation((ASKED,), "x", (3,), (None,)).to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {"open_end": 3},
        {"open_end": {}},
        {"open_end": {**END, "tail": 1}},
        {"open_end": {**END, "reached": -1}},
        {"open_end": {**END, "reached": True}},
        {"tail": []},
        {"messages": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": "What?"}]},
    ],
)
def test_damaged_ones_are_refused(changes):
    data = {"messages": [ASKED], "text": "User: <video>", "tail": [4], "media": 1, "open_end": END}
    assert Conversation.from_json(data).open_end == OpenEnd(**END)
    with pytest.raises(ValueError):
        Conversation.from_json({**data, **changes})
