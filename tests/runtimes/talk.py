"""Conversations without a model: what a session would feed, with answers given by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from linmu.processing.chat import SMOLVLM_VIDEO_TEMPLATE
from linmu.runtimes.conversation import Past, Turn
from linmu.runtimes.turns import TurnMaker

# Each in the manner of a published template (written for these tests).
TEMPLATES = {
    "strings, trimmed, beginning token, date": (  # Llama 3
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    "default system prompt": (  # Qwen 2.5, SmolLM2
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are helpful."
        "<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "thinking dropped": (  # Qwen 3
        "{% for m in messages %}{% set text = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in text and not loop.last %}"
        "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "no end of turns": (  # old chat models: an end token behind answers only
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "nothing special at all": (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "SmolVLM": SMOLVLM_VIDEO_TEMPLATE,
    "parts only": (  # Idefics, LLaVA
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


class Reader:
    """Counts what a session's state would have read; `ids` is all of it."""

    def __init__(self, processor):
        self.processor, self.ids = processor, []
        self.past = Past(0, (), (), None)
        self.notices = []

    def turn(self, prompt, images=(), video=None, add_generation_prompt=True, **options) -> Turn:
        read = self.processor.read(prompt, images, video, **options)
        return TurnMaker(self.processor, self.past, add_generation_prompt).turn(read)

    def ask(self, prompt, answer: list[int], images=(), answer_text=None, **options) -> Turn:
        """Feed a prompt, then an answer whose last token stays unfed, as in a session."""
        turn = self.turn(prompt, images, **options)
        assert turn.after == (self.past.tokens, self.past.pending)
        if turn.restart:
            self.ids = []
        elif turn.keeps_pending:
            self.ids += self.past.pending
        self.ids += turn.input_ids.tolist()
        self.asked = list(self.ids)
        self.ids += answer[:-1]
        self.past = Past(len(self.ids), tuple(answer), tuple(answer[-1:]), turn.conversation, answer_text)
        self.notices.append(turn.notice)
        return turn

    @property
    def messages(self):
        return TurnMaker(self.processor, self.past).messages()

    def saved(self):
        """As after --save-state and --load-state: the pictures are gone."""
        talk = self.past.conversation
        self.past = replace(self.past, conversation=type(talk).from_json(talk.to_json()))


def plain_ids(tokenizer, text) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def whole(tokenizer, messages) -> list[int]:
    """transformers' ids of a whole conversation, ready for the next answer."""
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return np.asarray(found["input_ids"]).reshape(-1).tolist()
