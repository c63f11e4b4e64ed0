"""Chat templates: what honest ones use works, and no template gets out, hangs or eats the memory."""

import resource
import time

import pytest

from tensorlib.errors import FormatError
from tensorlib.io import template
from tensorlib.io.template import ChatTemplate

MESSAGES = [{"role": "user", "content": " Hi {{ x }} "}, {"role": "assistant", "content": "Yes"}]

WORKS = {
    "{% for m in messages %}\n  {%- if loop.first %}[{% endif %}{{ m.role + ':' ~ m['content']|trim }};{% endfor %}]": (
        "[user:Hi {{ x }};assistant:Yes;]"
    ),
    "{{ bos_token }}{{ messages[1:][0].content.upper() }}{% if not tools %}-{% endif %}": "<s>YES-",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | tojson }}": (
        'user, assistant [{"role": "user", "content": " Hi {{ x }} "}, {"role": "assistant", "content": "Yes"}]'
    ),
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n * 2 }}": "4",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}": "user",
    "{% generation %}{{ 'x' * 3 }}{% endgeneration %}{{ '%s-%d' % ('a', 3) }}{{ '{}'.format(4) }}": "xxxa-34",
    "{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f(3, y='é') }}": "<12><3é>",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ nothing }}{{ none is none }}": "1True",
    "{{ {'a': [1, 2]}.items() | list }}{{ 'a,b'.split(',')[-1] }}{{ 'aXb'.replace('X', '-') }}": "[('a', [1, 2])]ba-b",
    "{% if add_generation_prompt %}{{ 'go\n' }}{% endif %}\n{{ 2 ** 10 }} {{ 7.15 | round(1) }}": "go\n1024 7.2",
}

REJECTED = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ ('{0.__class__.__init__.__globals__}') | attr('format')(messages) }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ messages.__class__ }}",
    "{{ messages | attr('__class__') }}",
    "{{ messages | map(attribute='__class__') | list }}",
    "{{ messages[0]['__class__']['__mro__'] }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(a=1) }}",
    "{{ messages.sort() }}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{% import 'x' as y %}",
    "{{ raise_exception('the reason') }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% block x %}{{ self.x() }}{% endblock %}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * [1] }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 2.0 ** (10 ** 9) }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%0999999999d' | format(1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10**9) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.zfill(10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x'.encode('utf-7') }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ range(99999) | join('b' * 100000) }}",
    "{{ ('b' * 100000).join('a' * 100000) }}",
    "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ ('a\n' * 100000) | indent('b' * 100000) }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = {1: n.s, 2: n.s} %}{% endfor %}{{ n.s }}",
    "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set t %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = t %}"
    "{% endfor %}{{ n.s }}",
    "{{ 1 / 0 }}",
    "{{ nothing.more }}",
    "{{ nothing() }}",
    "{{ x",
    "{% if %}",
    "{% endfor %}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{{ " + "-" * 30000 + "1 }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% for a in messages %}" * 60 + "{% endfor %}" * 60,
    "x" * 200_000,
]


@pytest.mark.parametrize("source", WORKS)
def test_works(source):
    assert ChatTemplate(source, "f", {"bos_token": "<s>"}).render(MESSAGES) == WORKS[source]


@pytest.mark.parametrize("source", REJECTED, ids=lambda s: s[:60])
def test_rejected(source):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FormatError) as caught:
        ChatTemplate(source, "model.gguf").render(MESSAGES)
    # Half a second is the budget of a rendering; compiling the longest template that is let in takes about as long.
    assert time.process_time() - start < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    assert caught.value.file == "model.gguf" and len(str(caught.value)) < 1000


def test_reason_is_told():
    with pytest.raises(FormatError, match="the reason"):
        ChatTemplate("{{ raise_exception('the reason') }}").render(MESSAGES)


def test_messages_stay_as_they_are_and_tracing_too():
    import sys

    before = sys.gettrace()
    with pytest.raises(FormatError):
        ChatTemplate("{% for m in messages %}{{ m.update({'a': 1}) }}{% endfor %}").render(MESSAGES)
    assert "a" not in MESSAGES[0] and sys.gettrace() is before


def test_large_honest_conversation():
    messages = [{"role": "user", "content": "x" * 2000}] * 500  # a million characters
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
    assert len(ChatTemplate(source).render(messages)) == 500 * 2007
    assert template.MAX_SIZE > 500 * 2007


def test_date():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]) >= "2024"
