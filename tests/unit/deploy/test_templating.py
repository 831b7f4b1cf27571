import jinja2
import pytest
from jinja2 import nodes

from deploy import templating
from deploy.quoting import QUOTERS
from deploy.templating import TARGETS, TEMPLATES, UnquotedValue, render


def test_an_undefined_name_is_an_error():
    """
    A template never fills a gap with nothing.
    """
    with pytest.raises(jinja2.UndefinedError):
        render("slipway.tmpfiles")


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.j2")), ids=lambda path: path.name)
def test_every_template_says_who_renders_it(path):
    """
    The first line names the template and warns that edits are lost.
    """
    head = " ".join(path.read_text(encoding="utf-8").splitlines()[:2])
    assert f"templates/{path.name}" in head
    assert "edits" in head
    assert "are lost" in head


def unquoted(source, target):
    """
    Return the lines of the outputs in *source* that do not pass a filter of *target*.
    """
    return [
        output.lineno
        for output in jinja2.Environment().parse(source).find_all(nodes.Output)
        for node in output.nodes
        if not isinstance(node, nodes.TemplateData)
        and not (isinstance(node, nodes.Filter) and node.name in target)
    ]


def test_every_template_has_a_target():
    """
    And every target a quoting function.
    """
    assert {path.name.removesuffix(".j2") for path in TEMPLATES.glob("*.j2")} == set(TARGETS)
    assert {name for names in TARGETS.values() for name in names} <= set(QUOTERS)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_value_passes_the_filter_of_its_target(name):
    """
    In the text of every template, branches that no test renders included.
    """
    source = (TEMPLATES / f"{name}.j2").read_text(encoding="utf-8")
    assert unquoted(source, TARGETS[name]) == []


@pytest.mark.parametrize(
    "source", ["{{ x }}", "{{ x | yaml }}", "{{ x | haproxy | upper }}", "{{ (x | haproxy) ~ y }}"]
)
def test_a_value_without_the_filter_would_be_noticed(source):
    """
    Negative control: bare, with another target's filter, or changed after it.
    """
    assert unquoted(source, ("haproxy",)) == [1]


@pytest.fixture
def rendered(tmp_path, monkeypatch):
    """
    Return a function that renders a text as the template haproxy.cfg.
    """
    monkeypatch.setattr(templating, "TEMPLATES", tmp_path)
    templating._environment.cache_clear()

    def render_text(source, **values):
        (tmp_path / "haproxy.cfg.j2").write_text(source)
        return render("haproxy.cfg", **values)

    yield render_text
    templating._environment.cache_clear()


@pytest.mark.parametrize("source", ["{{ x }}", "{{ (x | haproxy) ~ 'y' }}", "{{ x | upper }}"])
def test_rendering_refuses_a_value_that_is_not_quoted(rendered, source):
    """
    At run time as well: text without the filter, or changed after it, is an error.
    """
    assert rendered("{{ x | haproxy }}:{{ n }}", x="a.b", n=5) == "a.b:5"
    with pytest.raises(UnquotedValue):
        rendered(source, x="a")


def test_rendering_without_the_check_would_write_it(rendered, monkeypatch):
    """
    Negative control: switched off, a hostile value is a line of its own.
    """
    monkeypatch.setattr(templating, "_only_quoted", lambda value: value)
    templating._environment.cache_clear()
    text = rendered("bind :{{ x }}", x="80\n  external-check command /bin/sh")
    assert len(text.splitlines()) == 2


def test_the_filter_of_another_target_does_not_exist(rendered):
    """
    systemd's quoting does not protect HAProxy.
    """
    with pytest.raises(jinja2.TemplateAssertionError, match="systemd"):
        rendered("{{ x | systemd }}", x="a")


def test_what_the_target_cannot_express_is_refused(rendered):
    """
    Not repaired: the error has the value.
    """
    with pytest.raises(ValueError, match="haproxy"):
        rendered("{{ x | haproxy }}", x="a b")
