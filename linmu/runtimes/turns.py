"""Further turns: what the template makes of the whole conversation, minus what the state has read.

The whole conversation is rendered anew for every turn. Where the text that the state has read is its beginning, the
rest is fed. The tokens that a model generated stand for their text, however the tokenizer would cut it. A template
that rewrites the past (drops thinking, trims answers, tells the time) makes the conversation be read anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.processing import ModelInputs, Processor
from linmu.processing.chat import Message
from linmu.processing.control import plain_text
from linmu.processing.prompts import Prompt
from linmu.processing.sources import MediaSource, same_source
from linmu.runtimes.conversation import Conversation, Past, Turn, kept

CONTEXT_TOKENS = 64  # of the prompt, in front of an answer that is turned into text
# Stand for a question and an answer whose place in a rendered text is looked for. Noncharacters of Unicode: no template
# and no text that somebody writes has them (linmu.processing.control refuses them), no filter changes their case.
QUESTION, ANSWER = "\ufddb", "\ufddc"
REWRITTEN = "the chat template rewrites earlier turns"


class TurnMaker:
    """Makes the inputs of the next turn of one session."""

    def __init__(self, processor: Processor, past: Past, add_generation_prompt: bool = True):
        self.processor, self.past, self.add = processor, past, add_generation_prompt

    def turn(self, prompt: Prompt) -> Turn:
        """The inputs of a prompt; raises InputError as `Processor.encode` does."""
        if self.past.empty:
            return self._whole(prompt.messages, self.processor.text_of(prompt, self.add), prompt.media)
        if prompt.messages is None:
            return self._further_text(prompt)
        known = self.past.conversation
        if prompt.whole:
            return self._given_whole(prompt)
        if known is None or known.messages is None:
            if prompt.messages[0]["role"] == "system":
                raise InputError("a system prompt in the midst of a conversation", fix="use reset() first")
            return self._behind_unknown(prompt, ())
        return self._further_turn(prompt, known, known.messages)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation with its last answer, as people see it."""
        known = self.past.conversation
        if known is None or known.messages is None:
            return []
        answer = [self._message(self._answer_text())] if self.past.answer else []
        return [_plain(message) for message in (*known.messages, *answer)]

    # --- beginnings

    def _whole(self, messages: Any, text: str, media: Sequence[MediaSource], notice: str | None = None) -> Turn:
        special = self.processor.adds_special_tokens(text, messages is not None)
        inputs = self.processor.tokenized(text, media, special)
        assert inputs is not None  # nothing stands before it
        if notice is not None:
            notice = f"{notice}: the whole conversation was read anew ({len(inputs.input_ids)} tokens)"
        conversation = Conversation(messages, text, _tail(inputs.input_ids), kept(media))
        return self._made(inputs, conversation, restart=not self.past.empty, keeps=False, notice=notice)

    def _given_whole(self, prompt: Prompt) -> Turn:
        """Messages from the beginning on: the rest of them when the state has read just the first ones."""
        assert prompt.messages is not None
        text, known = self.processor.text_of(prompt, self.add), self.past.conversation
        if known is not None and known.messages is not None:
            count = len(known.media)
            same = len(prompt.media) >= count and all(
                old is not None and same_source(old, new) for old, new in zip(known.media, prompt.media, strict=False)
            )
            if same and (turn := self._continued(prompt.messages, text, known, prompt.media[count:])):
                return turn
        return self._whole(prompt.messages, text, prompt.media, "the messages differ from what the state has read")

    # --- continuations

    def _further_turn(self, prompt: Prompt, known: Conversation, before: tuple[Message, ...]) -> Turn:
        assert prompt.messages is not None
        added = self._without_repeated_system(prompt.messages, before)
        for answer in self._answers():
            messages = (*before, *answer, *added)
            try:
                text = self.processor.render_marked(messages, self.add)
            except InputError:
                continue
            if turn := self._continued(messages, text, known, prompt.media):
                return turn
        messages = (*before, self._message(self._answer_text()), *added)
        if any(item is None for item in known.media):
            return self._behind_unknown(replace(prompt, messages=added), before)
        media = [item for item in known.media if item is not None]
        text = self.processor.render_marked(messages, self.add)
        return self._whole(messages, text, [*media, *prompt.media], self._why_anew())

    def _continued(
        self, messages: tuple[Message, ...], text: str, known: Conversation, media: Sequence[MediaSource]
    ) -> Turn | None:
        """The turn that feeds the rest of `text`; None when what was read is not its beginning."""
        unread = self._rest(text, known)
        if unread is None:
            return None
        rest, keeps = unread
        before = text[: len(text) - len(rest)]
        keeps, rest, context = self._behind_answer(rest, before, keeps)
        if self._end_was_fed() and context != self._end_text():
            return None  # the state has read an end token that the template does not have there
        inputs = self.processor.tokenized(rest, media, False, context) if rest else None
        if inputs is None:
            return None
        conversation = Conversation(messages, text, _tail(inputs.input_ids), kept((*known.media, *media)))
        return self._made(inputs, conversation, keeps=keeps)

    def _behind_answer(self, rest: str, before: str, keeps: bool) -> tuple[bool, str, str]:
        """(Whether the last generated token is fed, what is left of `rest` behind it, text that gives it context)."""
        control, past = self.processor.control, self.past
        first = control.starts(rest)
        if past.answer and past.answer[-1] in self.processor.eos_token_ids:
            # fed only where the template closes an answer with it
            keeps = first is not None and control.ids.get(first.group()) == past.answer[-1]
            if first is not None and keeps:
                return bool(past.pending), rest[first.end() :], first.group()
        return keeps, rest, "" if first else before[control.last(before) :]

    def _end_was_fed(self) -> bool:
        """Whether a caller fed the token that ended the answer by hand."""
        past = self.past
        return bool(past.answer) and not past.pending and past.answer[-1] in self.processor.eos_token_ids

    def _end_text(self) -> str | None:
        return next((text for text, i in self.processor.control.ids.items() if i == self.past.answer[-1]), None)

    def _further_text(self, prompt: Prompt) -> Turn:
        """Text without a template behind what was read; a raw one behind the very tokens that were generated."""
        known, pending = self.past.conversation, self.past.pending
        keeps = bool(pending) and (prompt.raw or pending[-1] not in self.processor.eos_token_ids)
        before = "" if known is None else known.text + self._in_place(self._spoken())
        inputs = None
        if before and not self.processor.control.starts(prompt.text):
            context = before[self.processor.control.last(before) :]
            inputs = self.processor.tokenized(prompt.text, prompt.media, False, context)
        if inputs is None:
            inputs = self.processor.tokenized(prompt.text, prompt.media, False)
        assert inputs is not None
        media = kept((*(known.media if known else ()), *prompt.media))
        conversation = Conversation(None, before + prompt.text, _tail(inputs.input_ids), media) if known else None
        return self._made(inputs, conversation, keeps=keeps)

    def _behind_unknown(self, prompt: Prompt, before: tuple[Message, ...]) -> Turn:
        """A turn behind a past that cannot be rendered, or whose pictures are not here to be read again."""
        assert prompt.messages is not None
        stand_in: tuple[Message, ...] = before or ({"role": "user", "content": QUESTION},)
        messages = (*stand_in, self._message(ANSWER), *prompt.messages)
        text = self.processor.render_marked(messages, self.add)
        head, answer, rest = text.rpartition(ANSWER)
        if not answer or ANSWER in head:
            raise InputError("the chat template shows no answers: a conversation cannot go on", fix="use reset()")
        keeps, rest, context = self._behind_answer(rest, "", bool(self.past.pending))
        inputs = self.processor.tokenized(rest, prompt.media, False, context) if rest else None
        if inputs is None:
            raise InputError("the chat template adds nothing to the conversation", fix="use reset()")
        known = self.past.conversation
        notice = None
        conversation = None
        if before and known is not None:
            messages = (*before, self._message(self._answer_text()), *prompt.messages)
            read = known.text + self._in_place(self._spoken()) + text[len(head) + len(ANSWER) :]
            conversation = Conversation(messages, read, _tail(inputs.input_ids), kept((*known.media, *prompt.media)))
            notice = f"{self._why_anew()}, and pictures are not here to be read again: the state goes on as it is"
        return self._made(inputs, conversation, keeps=keeps, notice=notice)

    # --- the last answer

    def _rest(self, text: str, known: Conversation) -> tuple[str, bool] | None:
        """What `text` has behind everything that was read, and whether the token that is still unfed is part of that.

        None when what was read is not its beginning.
        """
        spoken = self._spoken()
        unfed = bool(self.past.pending) and len(spoken) == len(self.past.answer)
        for ids, keeps in ((spoken, unfed), (spoken[:-1], False)):
            read = known.text + self._in_place(ids)
            if self._is_text(ids) and text.startswith(read) and len(text) > len(read):
                return text[len(read) :], keeps
            if not unfed:
                return None
        return None

    def _answers(self) -> list[tuple[Message, ...]]:
        """The last answer as messages: as it was given, then with the spaces that templates put around answers."""
        whole = self._answer_text()
        texts = dict.fromkeys((whole, whole.lstrip(), whole.rstrip(), whole.strip()))
        answers: list[tuple[Message, ...]] = [(self._message(text),) for text in texts]
        return [(), *answers] if not self._spoken() else answers

    def _spoken(self) -> list[int]:
        """The generated ids without the one that ended the answer."""
        answer = list(self.past.answer)
        return answer[:-1] if answer and answer[-1] in self.processor.eos_token_ids else answer

    def _why_anew(self) -> str:
        return REWRITTEN if self._is_text(self._spoken()) else "the last answer holds control tokens"

    def _is_text(self, ids: Sequence[int]) -> bool:
        """Whether the ids are what their text says: no control tokens in the midst of an answer."""
        return set(self.processor.control.ids.values()).isdisjoint(ids)

    def _answer_text(self) -> str:
        """The answer as it was given to the user, marked."""
        text = self.past.answer_text
        return self._marked(self.processor.decode(self._spoken()) if text is None else text)

    def _in_place(self, ids: Sequence[int]) -> str:
        """Generated ids as text behind their prompt (a decoder may drop the space that a text begins with)."""
        known = self.past.conversation
        tail = list(known.tail) if known is not None else []
        before, whole = self.processor.decode(tail), self.processor.decode([*tail, *ids])
        return self._marked(whole[len(before) :] if whole.startswith(before) else self.processor.decode(ids))

    def _marked(self, text: str) -> str:
        return self.processor.control.mark("".join(char for char in text if not "\ufdd0" <= char <= "\ufdef"))

    @staticmethod
    def _message(text: str) -> Message:
        return {"role": "assistant", "content": text}

    def _without_repeated_system(self, added: tuple[Message, ...], before: tuple[Message, ...]) -> tuple[Message, ...]:
        if not added or added[0]["role"] != "system":
            return added
        if before[:1] != added[:1]:
            raise InputError(
                "the conversation began with another system prompt",
                got=repr(plain_text(str(added[0]["content"])))[:60],
                fix="use reset() first",
            )
        return added[1:]

    def _made(
        self,
        inputs: ModelInputs,
        conversation: Conversation | None,
        *,
        keeps: bool,
        restart: bool = False,
        notice: str | None = None,
    ) -> Turn:
        past = self.past
        return Turn(
            inputs.input_ids,
            inputs.text,
            inputs.media,
            inputs.vision_calls,
            inputs.digests,
            conversation,
            after=(past.tokens, past.pending),
            restart=restart,
            keeps_pending=keeps,
            notice=notice,
        )


def _plain(value: Any) -> Any:
    """A marked value of a message as people see it."""
    if isinstance(value, str):
        return plain_text(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _tail(ids: np.ndarray) -> tuple[int, ...]:
    return tuple(int(token) for token in ids[-CONTEXT_TOKENS:])
