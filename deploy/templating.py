"""
Renders the templates in `templates/`.

Every value passes the filter of the template's target, such as `{{ port | haproxy }}`, or is a
number.  Anything else is an error, and so is an undefined name.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

import jinja2

from deploy.quoting import QUOTERS, Quoted

TEMPLATES = Path(__file__).parents[1] / "templates"

_SYSTEMD = ("systemd", "systemd_instance")

# The filters in `QUOTERS` of the language of each template.
TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "90slipway.apt": ("apt_conf", "apt_conf_name"),
        "environment": ("env_file",),
        "haproxy.cfg": ("haproxy", "haproxy_words", "haproxy_format"),
        "runtime.yml": ("yaml",),
        "slipway-data.mount": _SYSTEMD,
        "slipway-deadman-boot.service": _SYSTEMD,
        "slipway-deadman.service": _SYSTEMD,
        "slipway-deadman.timer": _SYSTEMD,
        "slipway-gpu.service": _SYSTEMD,
        "slipway-runtime@.service": _SYSTEMD,
        "slipway-slot.mount": _SYSTEMD,
        "slipway-torch.service": _SYSTEMD,
        "slipway.slice": _SYSTEMD,
        "slipway.sources": ("deb822",),
        "slipway.tmpfiles": ("tmpfiles",),
    }
)


class UnquotedValue(Exception):
    """
    A template writes a value that has not passed the filter of its target.
    """


def render(name: str, **values: object) -> str:
    """
    Return template *name* (its file name, without `.j2`) with *values* filled in.

    Raises:
        jinja2.UndefinedError: *values* lacks a name that the template uses.
        UnquotedValue: The template writes text without the filter of its target.
        ValueError: The target cannot express a value.
    """
    return _environment(TARGETS[name]).get_template(f"{name}.j2").render(**values)


@cache
def _environment(target: tuple[str, ...]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - read by systemd, HAProxy and YAML, never by a browser
        finalize=_only_quoted,
    )
    # No others: the filter of another target is a syntax error in this template.
    environment.filters |= {name: partial(_quote, QUOTERS[name]) for name in target}
    return environment


def _quote(quote: Callable[[object], Quoted], value: object) -> Quoted:
    if isinstance(value, jinja2.Undefined):
        str(value)  # raises the error that names it
    return quote(value)


def _only_quoted(value: object) -> object:
    """
    Return *value*, which a template is about to write, if it is quoted or a whole number.
    """
    if isinstance(value, jinja2.Undefined):
        return value  # jinja2 raises the error that names it
    if isinstance(value, Quoted) or type(value) is int:
        return value
    raise UnquotedValue(f"{value!r:.80} is written without the filter of its target")
