"""A question about a clip that was read without one: the rest of the user's turn in which its frames stand."""

from __future__ import annotations

from collections.abc import Sequence

from linmu.errors import InputError
from linmu.processing import ModelInputs, Processor
from linmu.processing.chat import Message
from linmu.processing.prompts import Prompt
from linmu.processing.sources import MediaSource
from linmu.runtimes.conversation import Conversation, OpenEnd


def question_about(known: Conversation, prompt: Prompt) -> tuple[Message, ...]:
    """The conversation whose last message was a clip alone, with the question of `prompt` behind the clip.

    Raises InputError for anything but messages that begin with the user's.
    """
    assert known.messages is not None and prompt.messages is not None
    if prompt.messages[0]["role"] != "user" or prompt.whole:
        raise InputError(
            "messages behind frames that were read",
            got=f"roles {', '.join(message['role'] for message in prompt.messages)}",
            expected="a question of the user",
            fix="give the system prompt when the watching begins",
        )
    *before, asked = known.messages
    content = prompt.messages[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return (*before, {**asked, "content": [*asked["content"], *parts]}, *prompt.messages[1:])


def behind_clip(
    processor: Processor, text: str, known: Conversation, end: OpenEnd, media: Sequence[MediaSource]
) -> ModelInputs:
    """The inputs of what a rendered conversation `text` has behind the clip's last frame."""
    if not text.startswith(known.text):
        raise InputError(
            "the chat template writes something else before these frames than what the state has read",
            fix="start watching anew",
        )
    last = next((name for name, i in processor.control.ids.items() if i == known.tail[-1]), "")
    inputs = processor.tokenized(end.tail + text[len(known.text) :], media, False, last)
    if inputs is None:
        raise InputError("the tokenizer joins frames and question", fix="convert the model again")
    return inputs
