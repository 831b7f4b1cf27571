"""
A template or a conversation that explodes ends in an error, in bounded time and memory.
"""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.chat.errors import ChatTemplateError, RenderLimitExceeded
from runtime.chat.files import ChatFiles
from runtime.chat.limits import RenderLimits
from runtime.chat.template import ChatTemplate
from runtime.contract.errors import ModelError
from tests.unit.runtime.chat.conversations import user

HELLO = [user("hello")]
SHORT = RenderLimits(compile_cpu_s=0.2, cpu_s=0.1)
SMALL = RenderLimits(characters=1 << 20, memory_bytes=64 << 20)

# One call into C that looks for no signal: Python's rfind is quadratic.
SEARCH = "{% set n = 10 ** 6 %}{{ ('a' * 3 * n).rfind('ab' + 'a' * n) }}"
TOO_LONG = {
    "nested loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "digits": "{% set n = 10 ** 9 %}{{ (10 ** n) % 7 }}",
    "a search": SEARCH,
    "a product that grows": (
        "{% set ns = namespace(a=3) %}{% for i in range(60) %}{% set ns.a = ns.a * ns.a %}"
        "{% endfor %}{{ ns.a % 7 }}"
    ),
}
TOO_LARGE = {
    "a string times a number": "{% set n = 10 ** 9 %}{{ (messages[0].content * n) | length }}",
    "a constant times a number": "{{ 'a' * 10 ** 9 }}",
    "a list times a number": "{% set n = 10 ** 9 %}{{ ([1] * n) | length }}",
    "a doubled string": (
        "{% set ns = namespace(a='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set ns.a = ns.a ~ ns.a %}{% endfor %}"
    ),
    "padding": "{{ 'a' | center(10 ** 10) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "a format method": "{{ '{:10000000000}'.format(1) }}",
    "indented JSON": "{{ messages | tojson(indent=10 ** 9) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}
FORBIDDEN = {
    "a large range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a change of a message": "{{ messages.append(1) }}",
    "an attribute of a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "another file": "{% include '/etc/passwd' %}",
}
NOT_COMPILED = {
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "blocks": "{% if true %}" * 3000 + "{% endif %}" * 3000,
    "a constant of many digits": "{{ (10 ** (10 ** 9)) % 7 }}",
    "many statements": "{% if messages %}x{% endif %}" * 35_000,
}


def open_template(source, limits=SHORT):
    sources = {"default": "chat_template.jinja"}
    return ChatTemplate(ChatFiles({"default": source}, sources, {}), limits)


@pytest.fixture
def opened():
    """
    Return `open_template`; what it made is closed after the test.
    """
    templates = []

    def open_and_remember(*args):
        templates.append(open_template(*args))
        return templates[-1]

    yield open_and_remember
    for template in templates:
        template.close()


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_template_that_takes_too_long_is_stopped(name, opened):
    template = opened(TOO_LONG[name])

    with pytest.raises(RenderLimitExceeded, match=r"more than|too much time"):
        template.render(HELLO)


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_template_that_takes_too_much_memory_is_stopped(name, opened):
    template = opened(TOO_LARGE[name], SMALL)

    with pytest.raises(RenderLimitExceeded, match=r"memory|characters|nested too deeply"):
        template.render(HELLO)


def test_a_template_that_makes_too_much_text_is_stopped(opened):
    """
    Endless pieces that are small each.
    """
    template = opened(
        "{% for a in range(99) %}0123456789{% endfor %}{{ messages[0].content }}",
        RenderLimits(characters=1000),
    )
    assert len(template.render([user("0123456789")])) == 1000

    with pytest.raises(RenderLimitExceeded, match="more than 1000 characters"):
        template.render([user("0123456789+")])


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_template_reaches_nothing_outside_of_its_variables(name, opened):
    template = opened(FORBIDDEN[name])

    with pytest.raises(ChatTemplateError) as caught:
        template.render(HELLO)
    assert not isinstance(caught.value, RenderLimitExceeded)


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_a_template_that_can_not_be_compiled_is_an_error_of_its_file(name):
    with pytest.raises(ModelError) as caught:
        open_template(NOT_COMPILED[name])
    assert caught.value.what == "chat_template.jinja: not a chat template"


def test_a_syntax_error_names_the_line():
    with pytest.raises(ModelError) as caught:
        open_template("one\n{% for m in messages %}\n{% endfor")
    assert "line 3" in caught.value.why


def test_after_each_limit_the_next_conversation_is_rendered(opened):
    """
    In the same process, or in a new one where the old one had to be ended.
    """
    template = opened(
        "{% set n = 10 ** 9 %}{% set a = messages[0].content %}"
        "{% if a == 'search' %}" + SEARCH + "{% endif %}"
        "{% if a == 'memory' %}{{ (a * n) | length }}{% endif %}"
        "{% if a == 'loop' %}{% for x in range(99999) %}{% for y in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}{{ a }}"
    )
    for content, is_replaced in (("search", True), ("memory", False), ("loop", False)):
        before = template._process._process.pid
        with pytest.raises(RenderLimitExceeded):
            template.render([user(content)])
        assert template.render([user("fine")]) == "fine"
        assert (template._process._process.pid != before) is is_replaced


def test_a_process_that_was_killed_is_replaced(opened):
    """
    The conversation that it rendered fails; the kernel's OOM killer may do this.
    """
    template = opened("{{ messages[0].content }}")
    template._process._process.kill()

    with pytest.raises(RenderLimitExceeded, match="its process ended, signal 9"):
        template.render(HELLO)
    assert template.render(HELLO) == "hello"


def test_a_process_that_does_not_answer_is_replaced(opened):
    template = opened("{{ messages[0].content }}")
    template._process._limits = RenderLimits(wait_s=0.2)
    template._process._process.send_signal(signal.SIGSTOP)

    with pytest.raises(RenderLimitExceeded, match=r"no answer after 0\.2 s"):
        template.render(HELLO)


def test_deep_messages_are_refused(opened):
    deep = []
    for _ in range(20_000):
        deep = [deep]

    with pytest.raises(RenderLimitExceeded, match="nested too deeply"):
        opened("x").render([{"role": "user", "content": "x", "extra": deep}])


def test_the_caller_computes_nothing_while_a_template_runs(opened):
    """
    A call into C would hold Python's lock: no health check would be answered meanwhile.
    """
    template = opened(SEARCH, RenderLimits(cpu_s=0.5))
    before_s = time.process_time()

    with pytest.raises(RenderLimitExceeded):
        template.render(HELLO)
    assert time.process_time() - before_s < 0.25


def test_several_threads_get_the_answers_to_their_conversations(opened):
    template = opened("{{ messages[0].content }}")
    contents = [f"text {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda content: template.render([user(content)]), contents))

    assert texts == contents


def test_the_process_that_renders_holds_no_secret(monkeypatch, opened):
    monkeypatch.setenv("SLIPWAY_API_TOKENS", "secret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    process = opened("x")._process._process
    environment = Path(f"/proc/{process.pid}/environ").read_bytes()

    assert b"SLIPWAY_API_TOKENS" not in environment
    assert b"NOTIFY_SOCKET" not in environment


def test_the_process_ends_with_its_pipe():
    """
    So it does not outlive an API process that was killed.
    """
    template = open_template("x")
    template._process._connection.close()

    assert template._process._process.wait(timeout=60) == 0


def test_closing_waits_for_no_conversation(opened):
    """
    The one that is being rendered fails, and no other process is started for it.
    """
    template = opened(SEARCH, RenderLimits(cpu_s=600))
    with ThreadPoolExecutor(1) as pool:
        rendering = pool.submit(template.render, HELLO)
        wait_until_busy(template)
        process = template._process._process
        template.close()
        with pytest.raises(RenderLimitExceeded, match="its process ended, signal 9"):
            rendering.result(timeout=60)
    assert template._process._process is process

    with pytest.raises(RenderLimitExceeded, match="was closed"):
        template.render(HELLO)


def wait_until_busy(template):
    """
    Wait until the process has used CPU time for its conversation.
    """
    stat = Path(f"/proc/{template._process._process.pid}/stat")

    def ticks():
        return int(stat.read_text().rpartition(")")[2].split()[11])

    before, deadline_s = ticks(), time.monotonic() + 60
    while ticks() < before + 2:
        assert time.monotonic() < deadline_s, "it never began"
        time.sleep(0.01)


def test_what_a_request_has_fields_for_is_no_variable(opened):
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(ChatTemplateError, match=rf"chat_template_kwargs\.{name}"):
            opened("x").render(HELLO, kwargs={name: []})


def test_no_messages_are_refused(opened):
    with pytest.raises(ChatTemplateError, match="at least one"):
        opened("x").render([])
