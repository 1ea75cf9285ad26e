from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from linmu.errors import InputError
from linmu.processing import chat
from tests.processing.support import picture

TEMPLATE = """
{%- for m in messages %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {% if m.role == 'system' %}
<<{{ m.content | tojson }}>>
    {% else %}
    {%- generation %}{{ bos_token }}[{{ m.role | capitalize }}] {% for p in m.content %}
{%- if p.type == 'text' %}{{ p.text | trim }}{% else %}({{ p.type }}{{ p.image is defined }}){% endif %}
{% endfor %}{{ m.thinking }}{{ m.reasoning_content }}{% endgeneration %}
    {% endif %}
{% endfor %}
{%- set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ tools is none }}{{ dict(a=1) }}
{{- strftime_now('%Y') }}
{% if add_generation_prompt %}go:{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": 'é <a> & "b"', "tool_calls": None},
    {"role": "user", "content": [{"type": "image", "image": picture(2, 3)}, {"type": "text", "text": " hi "}]},
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}], "reasoning": "so"},
    {"role": "user", "content": [{"type": "text", "text": "after the break"}]},
]


@pytest.mark.parametrize("add", [True, False])
def test_renders_like_transformers(add):
    given = [{k: v for k, v in m.items() if v is not None} for m in MESSAGES]
    want, _ = render_jinja_template([given], chat_template=TEMPLATE, add_generation_prompt=add, bos_token="<s>")
    got = chat.render(TEMPLATE, MESSAGES, add, {"bos_token": "<s>"})
    assert got == want[0]
    assert "after" not in got and ("go:" in got) == add


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'a' + 1 }}",
        "{{ missing.field }}",
        "{% for %}",
    ],
)
def test_refusing_and_unsafe_templates(template):
    with pytest.raises(InputError, match="chat template"):
        chat.render(template, MESSAGES[:1], True, {})


def test_the_template_never_sees_live_objects():
    seen = chat.render("{{ messages[0].content[0].image }}", MESSAGES[1:2], False, {})
    assert seen == "<Image>"


def test_check_messages_names_the_bad_part():
    for bad in ("x", [], [3], [{"content": "a"}], [{"role": "user", "content": 3}]):
        with pytest.raises(InputError):
            chat.check_messages(bad)
    with pytest.raises(InputError, match="audio"):
        chat.check_messages([{"role": "user", "content": [{"type": "audio"}]}])
    with pytest.raises(InputError, match="text"):
        chat.check_messages([{"role": "user", "content": [{"type": "text"}]}])
