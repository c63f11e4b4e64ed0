"""Chat templates: what honest ones use works, and no template gets out, hangs or eats the memory."""

import pytest

from tensorlib.errors import FormatError
from tensorlib.io import template
from tensorlib.io.template import ChatTemplate
from tests.io.build_template import MESSAGES, WORKS


@pytest.mark.parametrize("source", WORKS)
def test_works(source):
    assert ChatTemplate(source, "f", {"bos_token": "<s>"}).render(MESSAGES) == WORKS[source]


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
    source = "{% set n = namespace(s='') %}{% for m in messages[1:] %}{% set n.s = n.s + m.content[1:] %}{% endfor %}"
    assert len(ChatTemplate(source + "{{ n.s }}").render(messages[:101])) == 100 * 1999  # 10 million made
    source = "{% for m in messages %}{{ messages[loop.index0:][0]['content'] ~ messages[0].content }}{% endfor %}"
    assert len(ChatTemplate(source).render(messages)) == 500 * 4000


def test_long_conversations_may_take_longer():
    """Some real templates go through all messages for each of them."""
    messages = [{"role": "user", "content": "x"}] * 300
    source = "{% for m in messages %}{% for n in messages %}{% if n.role %}{% endif %}{% endfor %}.{% endfor %}"
    assert ChatTemplate(source).render(messages) == "." * 300  # 900,000 steps or so
    with pytest.raises(FormatError, match=r"steps|processor time"):
        ChatTemplate(source.replace("messages %}{% if", "range(99999) %}{% if")).render(messages[:3])


def test_depth_of_schemas():
    source = "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(50) }}"
    assert ChatTemplate(source).render([]).endswith("543210")


def test_date():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([]) >= "2024"
