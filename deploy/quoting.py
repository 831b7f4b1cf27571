"""
Quotes values for the files that we generate: functions of each target language.  Pure.

Each function returns text that the target reads back as exactly the given value, or refuses the
value with ValueError.  None of them repairs a value.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

# Characters without a meaning in any of the targets: no quote, no white space, no `$`, `%`, `\`,
# `;` or `#`.
_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_IPV6_HOST = re.compile(r"(?<=://)\[([0-9a-f:.]+)\]")  # of a URL: its brackets open nothing
_YAML_WORD = re.compile(r"[a-z][a-z0-9_]*")
_YAML_RESERVED = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_PRINTABLE = re.compile(r"[ -~]*")
_HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


class Quoted(str):
    """
    Text that one of the functions here has quoted for its target.
    """

    __slots__ = ()


def quote_systemd(value: object) -> Quoted:
    """
    Return one word of a setting in a systemd unit.  Source: systemd.syntax(7), systemd.unit(5).

    Raises:
        ValueError: The word would be empty, split, continued, or expanded as a variable.
    """
    text = _text(value, "systemd")
    # `%` starts a specifier.  A command or file that starts with one of `-@:+` has a meaning of its
    # own: `+` runs it as root.
    if not _PLAIN.fullmatch(text.replace("%", "")) or text[0] in "-@:+":
        raise _refused(text, "one word of a systemd unit")
    return Quoted(text.replace("%", "%%"))


def quote_systemd_instance(value: object) -> Quoted:
    """
    Return one word of a template unit in which `%i` is the name of the instance.

    For paths and users of our own that have one for each instance, never for a fleet's value.
    """
    parts = _text(value, "systemd").split("%i")
    if any("%" in part for part in parts):
        raise _refused(str(value), "a word with no specifier but %i")
    quote_systemd("x".join(parts))
    return Quoted("%i".join(parts))


def quote_tmpfiles(value: object) -> Quoted:
    """
    Return a path in a line of tmpfiles.d, where `%` starts a specifier.  Source: tmpfiles.d(5).
    """
    text = _text(value, "tmpfiles.d")
    if not _PLAIN.fullmatch(text.replace("%", "")):
        raise _refused(text, "one word of tmpfiles.d")
    return Quoted(text.replace("%", "%%"))


def quote_env_file(value: object) -> Quoted:
    """
    Return a name or value in an EnvironmentFile; it may be empty.  Source: systemd.exec(5).
    """
    text = _text(value, "an environment file")
    # A bearer token also has `~`, which has no meaning there.
    if text and not _PLAIN.fullmatch(text.replace("~", "-")):
        raise _refused(text, "a value of an environment file")
    return Quoted(text)


def quote_haproxy(value: object) -> Quoted:
    """
    Return one word of haproxy.cfg.  Source: HAProxy's configuration manual, "Quoting and escaping".

    Some words are log formats, where `%` starts a variable, so it is refused.
    """
    text = _text(value, "HAProxy")
    if not _PLAIN.fullmatch(_IPV6_HOST.sub(r"\1", text)):
        raise _refused(text, "one word of haproxy.cfg")
    return Quoted(text)


def quote_haproxy_words(values: object) -> Quoted:
    """
    Return the words of a list, such as the addresses of an ACL; at least one.

    Raises:
        ValueError: The list is empty, or `quote_haproxy` refuses a word.
    """
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{values!r:.80} cannot be written for HAProxy: it is no list of words")
    return Quoted(" ".join(quote_haproxy(value) for value in values))


def quote_haproxy_format(value: object) -> Quoted:
    """
    Return a log format in strong quotes; its `%` expressions are read.

    For formats of our own, never for a fleet's value.
    """
    text = _text(value, "HAProxy")
    if not text or not _PRINTABLE.fullmatch(text) or "'" in text:
        raise _refused(text, "a quoted log format of haproxy.cfg")
    return Quoted(f"'{text}'")


def quote_apt_conf(value: object) -> Quoted:
    """
    Return a value of apt.conf, with its quotes.  Source: apt.conf(5).

    apt knows no escape for a quote, and decodes `%` with two digits.
    """
    text = _text(value, "apt.conf")
    if not _PRINTABLE.fullmatch(text) or set(text) & set('"\\%'):
        raise _refused(text, "a value of apt.conf")
    return Quoted(f'"{text}"')


def quote_apt_conf_name(value: object) -> Quoted:
    """
    Return a host name as a part of the name of an option of apt.conf.
    """
    text = _text(value, "apt.conf")
    if not _HOST_NAME.fullmatch(text):
        raise _refused(text, "a name of apt.conf")
    return Quoted(text)


def quote_deb822(value: object) -> Quoted:
    """
    Return one word of a field in a `.sources` file.  Source: sources.list(5), deb822(5).

    An option in brackets, such as `[trusted=yes]`, is refused.
    """
    text = _text(value, "deb822")
    if not _PLAIN.fullmatch(_IPV6_HOST.sub(r"\1", text.replace("~", "-"))):
        raise _refused(text, "one word of a deb822 field")
    return Quoted(text)


def quote_yaml(value: object) -> Quoted:
    """
    Return a scalar, or a list of scalars, that YAML 1.1 and 1.2 read alike.

    Raises:
        ValueError: A number is not finite, or a text has a lone surrogate.
    """
    if isinstance(value, list | tuple):
        return Quoted("[" + ", ".join(quote_yaml(entry) for entry in value) + "]")
    if value is None or isinstance(value, bool | int):
        return Quoted(json.dumps(value))
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refused(str(value), "a YAML number")
        text = json.dumps(value)
        # YAML 1.1 reads 1e-05 as text: the number needs a point.
        return Quoted(text if "." in text else text.replace("e", ".0e"))
    if _YAML_WORD.fullmatch(_text(value, "YAML")) and value not in _YAML_RESERVED:
        return Quoted(value)
    return Quoted('"' + "".join(_yaml_character(c) for c in _text(value, "YAML")) + '"')


# The functions by their names as filters in the templates.
QUOTERS: Mapping[str, Callable[[object], Quoted]] = MappingProxyType(
    {
        "systemd": quote_systemd,
        "systemd_instance": quote_systemd_instance,
        "tmpfiles": quote_tmpfiles,
        "env_file": quote_env_file,
        "haproxy": quote_haproxy,
        "haproxy_words": quote_haproxy_words,
        "haproxy_format": quote_haproxy_format,
        "apt_conf": quote_apt_conf,
        "apt_conf_name": quote_apt_conf_name,
        "deb822": quote_deb822,
        "yaml": quote_yaml,
    }
)


def _text(value: object, target: str) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{value!r:.80} cannot be written for {target}: it is not text")


def _yaml_character(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:
        raise _refused(character, "YAML text")
    if " " <= character <= "~" and character not in '"\\':
        return character
    return f"\\U{code:08x}"


def _refused(text: str, place: str) -> ValueError:
    return ValueError(f"{text[:80]!r} cannot be written as {place}")
