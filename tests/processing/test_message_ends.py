"""Which tokens end a message, in every family's template and in the manners of published ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.processing.support import tiny_pair
from tests.runtimes.talk import TEMPLATES
from tests.tiny import FAMILY_NAMES

OPENING_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "{% endif %}"
)
STRICT = "{{ raise_exception('no') }}"
WANTED = {
    "strings, trimmed, beginning token, date": ["<eos>", "<|im_end|>"],
    "default system prompt": ["<eos>", "<|im_end|>"],
    "thinking dropped": ["<eos>", "<|im_end|>"],
    "no end of turns": ["<eos>"],
    "nothing special at all": ["<eos>"],
    "SmolVLM": ["<eos>"],  # <end_of_utterance> is no token of the tiny llama
    "parts only": ["<eos>", "<|im_end|>"],
}


def names(processor) -> list[str]:
    return sorted(processor.tokenizer.id_to_token(token) for token in processor.message_end_ids)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family(family, tmp_path):
    assert names(tiny_pair(family, tmp_path)[1]) == ["<eos>", "<|im_end|>"]


def test_templates_in_the_manner_of_published_ones(tmp_path):
    processor = tiny_pair("llama", tmp_path)[1]
    assert {name: names(replace(processor, chat_template=text)) for name, text in TEMPLATES.items()} == WANTED
    assert names(replace(processor, chat_template=OPENING_ONLY)) == ["<eos>", "<|im_start|>"]
    for template in (STRICT, None):
        assert names(replace(processor, chat_template=template)) == ["<eos>"]


def test_smolvlm_ends_messages_with_a_token_of_its_own(tmp_path):
    processor = tiny_pair("smolvlm", tmp_path)[1]
    own = replace(processor, chat_template=TEMPLATES["SmolVLM"])
    assert names(own) == ["<end_of_utterance>", "<eos>"]
