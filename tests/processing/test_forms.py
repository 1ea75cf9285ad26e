"""A message's content reaches the template in the form it reads: no text vanishes, no list is printed."""

from __future__ import annotations

import pytest

from linmu.processing.forms import adapted, takes, takes_tools

STRINGS = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
PARTS = "{% for m in messages %}[{{ m.role }}] {% for p in m.content %}{{ p.text }}{% endfor %}\n{% endfor %}"
BOTH = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\n{% endfor %}"
)
MIXED = (  # Llama 3.2 Vision: a system text, users' parts
    "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('late') }}{% endif %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}\n{% endfor %}"
)
TEXT, PART = {"role": "user", "content": "hi"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize(
    ("template", "user", "system"),
    [
        (STRINGS, (True, False), (True, False)),
        (PARTS, (False, True), (False, True)),
        (BOTH, (True, True), (True, True)),
        (MIXED, (False, True), (True, False)),
        ("{{ messages[0].missing.field }}", (False, False), (False, False)),
    ],
)
def test_forms_are_found_by_trying(template, user, system):
    assert takes(template, "user", ()) == user
    assert takes(template, "system", ()) == system


def test_content_is_given_in_the_form_that_is_read():
    assert adapted(STRINGS, [PART], {}) == [TEXT] and adapted(STRINGS, [TEXT], {}) == [TEXT]
    assert adapted(PARTS, [TEXT], {}) == [PART] and adapted(PARTS, [PART], {}) == [PART]
    assert adapted(BOTH, [TEXT, PART], {}) == [TEXT, PART]
    two = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert adapted(STRINGS, [two], {}) == [{"role": "user", "content": "a\nb"}]
    picture = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
    assert adapted(STRINGS, [picture], {}) == [picture]
    system = {"role": "system", "content": [{"type": "text", "text": "be"}]}
    assert adapted(MIXED, [system, TEXT], {}) == [{"role": "system", "content": "be"}, PART]
    tool = {"role": "assistant", "content": None, "tool_calls": []}
    assert adapted(STRINGS, [tool], {}) == [tool]


def test_tools_are_shown_where_the_template_shows_them():
    shown = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + BOTH
    assert takes_tools(shown, ()) and takes_tools(shown + PARTS, ())
    assert not takes_tools(BOTH, ()) and not takes_tools("{{ messages[0].missing.field }}", ())
