import jinja2
import pytest

from deploy.templating import TEMPLATES, render


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
