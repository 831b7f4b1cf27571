"""
Content is given to a template in the form that it reads.
"""

import pytest

from runtime.chat.content import ContentForm, convert, detect_form
from runtime.chat.environment import make_environment
from runtime.chat.errors import ChatTemplateError
from tests.unit.runtime.chat.conversations import text
from tests.unit.runtime.chat.models import FORMS, TEMPLATES

STRING, PARTS, EITHER = ContentForm.STRING, ContentForm.PARTS, ContentForm.EITHER
MACRO = "{% macro f(a, c) %}{% for p in c %}{% endfor %}{% endmacro %}"
LOOP = "{{% for m in messages %}}{0}{{% endfor %}}"


def form_of(source):
    return detect_form(make_environment().parse(source))


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_the_form_of_published_templates(path):
    assert form_of(path.read_text()).value == FORMS.get(path.stem, "string")


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ("{{ m.content }}", STRING),
        ("{{ m['content'] | trim }}{% if m.content is string %}{% endif %}", STRING),
        ("{% for line in m.content.split('x') %}{% endfor %}", STRING),
        ("{% for call in m.tool_calls %}{% endfor %}", STRING),
        ("{{ m.content if m.content is string else m.content | tojson }}", STRING),
        ("{% for p in m.content %}{% endfor %}", PARTS),
        ("{% for p in m['content'] %}{% endfor %}", PARTS),
        ("{% for p in m.get('content', []) %}{% endfor %}", PARTS),
        ("{% for p in m.content | selectattr('type', 'equalto', 'text') %}{% endfor %}", PARTS),
        ("{% set c = m.content %}{% set d = c %}{% for p in d %}{% endfor %}", PARTS),
        ("{{ m.content[0].text }}", PARTS),
        ("{% for p in m.content or [] %}{% endfor %}", PARTS),
        (MACRO + "{{ f(1, m.content) }}", PARTS),
        (MACRO + "{{ f(1, c=m.content) }}", PARTS),
        (MACRO + "{{ f(m.content, 1) }}", STRING),
        ("{% if m.content is string %}x{% else %}{% for p in m.content %}{% endfor %}{% endif %}",
         EITHER),
        ("{% set c = m.content %}{% if c is not string %}{% for p in c %}{% endfor %}{% endif %}",
         EITHER),
    ],
)  # fmt: skip
def test_a_loop_over_content_wants_parts(body, form):
    assert form_of(LOOP.format(body)) is form


ONE_TWO = [text("one"), text("two")]


@pytest.mark.parametrize(
    ("content", "form", "role", "converted"),
    [
        ("one", STRING, "user", "one"),
        ("one", EITHER, "user", "one"),
        ("one", PARTS, "user", [text("one")]),
        ("", PARTS, "system", [text("")]),
        (ONE_TWO, STRING, "user", "one\ntwo"),
        (ONE_TWO, PARTS, "system", ONE_TWO),
        (ONE_TWO, EITHER, "user", ONE_TWO),
        (ONE_TWO, EITHER, "system", "onetwo"),
        ([], STRING, "user", ""),
        ({"a": 1}, STRING, "tool", {"a": 1}),
    ],
)
def test_content_is_converted_between_string_and_parts(content, form, role, converted):
    assert convert(content, form, role=role, where="messages[0].content") == converted


@pytest.mark.parametrize("form", ContentForm)
@pytest.mark.parametrize(
    ("part", "why"),
    [
        (
            {"type": "image_url", "image_url": {"url": "x"}},
            "a part of type 'image_url': only 'text'",
        ),
        ({"text": "x"}, "a part of type None"),
        ("x", "a part of type None"),
        ({"type": "text"}, ".text: should be a string"),
        ({"type": "text", "text": 1}, ".text: should be a string"),
    ],
)
def test_a_part_that_is_not_text_is_refused_by_its_place(form, part, why):
    """
    It is never left out without a word.
    """
    with pytest.raises(ChatTemplateError) as caught:
        convert([text("a"), part], form, role="user", where="messages[3].content")
    assert str(caught.value).startswith("messages[3].content[1]")
    assert why in str(caught.value)
