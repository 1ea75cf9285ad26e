"""Templates from strangers end in time, in bounded memory, in any thread; what real templates do still works."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from linmu.errors import InputError
from linmu.processing import chat, sandbox
from linmu.processing.chat import TemplateCost
from tests.paths import ROOT

MESSAGES = [{"role": "user", "content": "abc <b> é"}]
DOUBLING = (
    "{%% set ns = namespace(s='aaaaaaaa') %%}{%% for i in range(60) %%}{%% set ns.s = %s %%}{%% endfor %%}{{ ns.s }}"
)
BIG = "{% set b = 'a ' * 4000000 %}"
TOO_MUCH = [
    "{{ 'a' * 3000000000 }}",
    "{{ 3000000000 * 'a' }}",
    "{{ [0] * 3000000000 }}",
    "{{ 10 ** 1000000000 }}",
    "{{ 'a' | center(3000000000) }}",
    "{{ 'a'.ljust(3000000000) }}",
    "{{ 'a'.zfill(3000000000) }}",
    "{{ '\\t'.expandtabs(3000000000) }}",
    "{{ '%3000000000d' % 1 }}",
    "{{ '%*d' % (3000000000, 1) }}",
    "{{ '%3000000000d' | format(1) }}",
    "{{ '{:>3000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 3000000000) }}",
    "{{ 'a b' | wordwrap(1, wrapstring='x' * 9000000) }}",
    "{{ 'abc' | batch(3000000000, 'x') | list }}",
    "{{ 'abc' | slice(3000000000) | list }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ 'a'.translate({97: 'b' * 1000}) }}",
    "{{ [[1, 2]] * 100000 | sum(start=[]) }}",
    DOUBLING % "ns.s ~ ns.s",
    DOUBLING % "ns.s + ns.s",
    DOUBLING % "ns.s.replace('a', 'aaaaaaaa')",
    DOUBLING % "ns.s | replace('a', 'aaaaaaaa')",
    DOUBLING % "[ns.s, ns.s]",
    DOUBLING % "ns.s.join([ns.s, ns.s])",
    BIG + "{{ ','.join([b] * 100000) }}",
    BIG + "{{ ([{'x': b}] * 100000) | map(attribute='x') | join }}",
    BIG + "{% set y %}{% for i in range(100000) %}{{ b }}{% endfor %}{% endset %}",
    BIG + "{{ b | indent(9000) * 9 }}",
    BIG + "{% for i in range(1000) %}{% set x = b | upper %}{% endfor %}",
    BIG + "{{ {'a': [b, b, b]} }}",
    "{% set y %}{% for i in range(90000) %}" + "x" * 1000 + "{% endfor %}{% endset %}",
]
LONG = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n < 60 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
    "{% for x in range(1000) recursive %}{% if loop.depth < 6 %}{{ loop(range(1000)) }}{% endif %}{% endfor %}",
]
BROKEN = [
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "a" * 3_000_000,
    "{{ " + "9" * 10_000 + " }}",
    "{{ range(10 ** 9) }}",
    "{{ 1 // 0 }}",
    "{{ lipsum(9) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(0) }}",
]


def test_what_asks_for_too_much_is_refused_at_once():
    for template in TOO_MUCH:
        start = time.thread_time()
        with pytest.raises(TemplateCost, match="limits"):
            chat.render(template, MESSAGES, True, {})
        assert time.thread_time() - start < 8, template


def test_memory_stays_small():
    script = (
        "import resource; from tests.processing.test_sandbox import *\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "test_what_asks_for_too_much_is_refused_at_once()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300 * 1024  # KiB


def test_loops_end_in_every_thread(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.3)
    ends = []

    def render(template):
        start = time.thread_time()
        with pytest.raises(TemplateCost, match="0.3 seconds"):
            chat.render(template, MESSAGES, True, {})
        ends.append(time.thread_time() - start)

    for template in LONG:
        thread = threading.Thread(target=render, args=(template,))
        thread.start()
        thread.join()
    assert len(ends) == len(LONG) and max(ends) < 3
    monkeypatch.setattr(sandbox, "MAX_ROUNDS", 1000)
    with pytest.raises(TemplateCost, match="1000 rounds"):
        chat.render(LONG[0], MESSAGES, True, {})


def test_broken_templates_are_one_line():
    for template in BROKEN:
        with pytest.raises(InputError, match="chat template") as caught:
            chat.render(template, MESSAGES, True, {})
        assert "\n" not in str(caught.value)


def test_long_conversations_are_far_within_the_limits():
    template = (
        "{% set ns = namespace(out='') %}{% for m in messages %}{% for w in m.content.split(' ') %}{% endfor %}"
        "{{ loop.index0 ~ ' ' ~ loop.length ~ (', ' if not loop.last) }}{{ m.content | trim | replace('b', 'B') }}"
        "{% set ns.out = m.content %}{% endfor %}"
    )
    messages = [{"role": "user", "content": " " + "word " * 200 + "b" * 3000}] * 500
    text = chat.render(template, messages, True, {})
    word = "word " * 200 + "B" * 3000
    assert text == "".join(f"{i} 500{', ' if i < 499 else ''}{word}" for i in range(500))


def test_macros_may_name_their_arguments_as_they_like():
    template = "{% macro m(context, obj=2) %}{{ context }}{{ obj }}{{ caller() if caller }}{% endmacro %}"
    assert chat.render(template + "{{ m(context=1, obj=3) }}", MESSAGES, True, {}) == "13"
    assert chat.render(template + "{% call m(context=1) %}x{% endcall %}", MESSAGES, True, {}) == "12x"


def test_formatting_that_templates_do():
    template = "{{ '%s-%.2f' % ('a', 2.5) }} {{ '{:>4}|{x}'.format(7, x='é') }} {{ [1] + [2] }} {{ 'a' * 3 ~ 2 ** 9 }}"
    assert chat.render(template, MESSAGES, True, {}) == "a-2.50    7|é [1, 2] aaa512"
