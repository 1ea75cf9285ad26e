"""Which control tokens stand behind a message: tried on the chat template, not guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from linmu.errors import InputError
from linmu.processing.chat import Message
from linmu.processing.control import ControlTokens

PROBES = ("Qz7one", "Qz7two", "Qz7three")
ROLES = (("user", "assistant", "user"), ("system", "user", "assistant"), ("user",))


def message_end_ids(
    render: Callable[[Sequence[Message], bool], str], control: ControlTokens, placeholders: Sequence[int]
) -> frozenset[int]:
    """Ids of the first control token behind a message's content, for every role that the template shows.

    render: (messages, whether a prompt for an answer follows) -> marked text. Where a template closes no message, that
    is the token which opens the next one; where it writes no control tokens at all, there are none. `placeholders` are
    ids that stand for pictures.
    """
    found = set()
    for roles in ROLES:
        messages = [{"role": role, "content": text} for role, text in zip(roles, PROBES, strict=False)]
        try:
            text = render(messages, True)
        except InputError:  # a template that knows no such role, or no such order
            continue
        found |= set(_behind(text, control))
    return frozenset(found.difference(placeholders))


def _behind(text: str, control: ControlTokens) -> Iterator[int]:
    """The first control token behind each probe, where no other probe stands before it."""
    for probe in PROBES:
        _, shown, rest = text.partition(probe)
        match = control.first(rest) if shown else None
        if match is not None and not any(other in rest[: match.start()] for other in PROBES):
            token = control.ids.get(match.group())
            if token is not None:
                yield token
