"""
Renders the templates in `templates/`.  An undefined name is an error.
"""

from functools import cache
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parents[1] / "templates"


def render(name: str, **values: object) -> str:
    """
    Return template *name* (its file name, without `.j2`) with *values* filled in.

    Raises:
        jinja2.UndefinedError: *values* lacks a name that the template uses.
    """
    return _environment().get_template(f"{name}.j2").render(**values)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - read by systemd, HAProxy and YAML, never by a browser
    )
