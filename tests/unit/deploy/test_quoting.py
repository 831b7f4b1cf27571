"""
Each quoting function: its target reads back exactly the given value, or the value is refused.
"""

import os
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.quoting import (
    QUOTERS,
    Quoted,
    quote_apt_conf,
    quote_deb822,
    quote_env_file,
    quote_haproxy,
    quote_haproxy_format,
    quote_haproxy_words,
    quote_systemd,
    quote_systemd_instance,
    quote_tmpfiles,
    quote_yaml,
)
from tests.unit.deploy.inventory.payloads import PAYLOADS

texts = st.text() | st.sampled_from([p for p in PAYLOADS if len(p) < 1000])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts


def quoted(quote, value):
    """
    Return *value* as *quote* writes it; None if it is refused.
    """
    try:
        text = quote(value)
    except ValueError:
        return None
    assert isinstance(text, Quoted)
    assert re.fullmatch(r"[ -~]*", text), "a quoted value is one line of ASCII"
    return text


@given(scalars | st.lists(scalars, max_size=4))
def test_yaml_reads_back_the_value(value):
    """
    Of any type, also 1e-05 and the words that YAML 1.1 takes for booleans.
    """
    if (text := quoted(quote_yaml, value)) is not None:
        found = yaml.safe_load(f"key: {text}\nnext: 1\n")
        assert found == {"key": value, "next": 1}
        assert type(found["key"]) is type(value)


def test_yaml_refuses_only_what_it_cannot_say():
    """
    Negative control: the property above holds of something.
    """
    assert quoted(quote_yaml, "\udcff") is None
    assert quoted(quote_yaml, float("inf")) is None
    refused = [p for p in PAYLOADS if quoted(quote_yaml, p) is None]
    assert refused == ["\udcff"]


def systemd_words(line):
    """
    Return the words of a setting as systemd.syntax(7) and systemd.unit(5) read them.
    """
    assert "\n" not in line
    assert not re.search(r"(?<!%)(?:%%)*%(?!%)", line), "a specifier"
    assert not set(line) & set("$\\'\";")
    return line.replace("%%", "%").split()


@given(texts)
@pytest.mark.parametrize("quote", [quote_systemd, quote_tmpfiles])
def test_systemd_reads_back_one_word(quote, value):
    """
    No specifier, continuation, second word, or prefix of a command.
    """
    if (text := quoted(quote, value)) is not None:
        assert systemd_words(text) == [value]
        assert quote is quote_tmpfiles or value[0] not in "-@:+!"


@given(texts)
def test_haproxy_reads_back_one_word(value):
    """
    No variable, log format, comment or quote.
    """
    if (text := quoted(quote_haproxy, value)) is not None:
        assert not set(text) & set("$%#\"'\\")
        assert text.split() == [value]


@given(texts)
def test_a_field_of_deb822_reads_back_one_word(value):
    """
    No further field, no option in brackets at the start of a word.
    """
    if (text := quoted(quote_deb822, value)) is not None:
        assert text.split() == [value]
        assert text[0] not in "[#"


@given(texts)
def test_an_environment_file_reads_back_the_value(value):
    """
    It may be empty: a service without tokens.
    """
    if (text := quoted(quote_env_file, value)) is not None:
        assert shlex.split(f"x={text}", comments=True) == [f"x={value}"]
        assert not set(text) & set("$`")


def test_apt_reads_back_the_value(tmp_path):
    """
    As apt-config prints it, of every payload that is not refused.
    """
    program = shutil.which("apt-config", path=os.environ["PATH"] + ":/usr/bin")
    if program is None:
        pytest.skip("apt-config is not installed here")
    accepted = [(p, text) for p in PAYLOADS if (text := quoted(quote_apt_conf, p)) is not None]
    assert len(accepted) > 50
    path = tmp_path / "apt.conf"
    path.write_text("".join(f"Slipway::P{n} {text};\n" for n, (_, text) in enumerate(accepted)))
    done = subprocess.run(
        [program, "dump"], env={"APT_CONFIG": str(path)}, capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("Slipway::P")]
    # apt-config prints its own `%` escapes; a value with `%` is refused.
    assert lines == [f'Slipway::P{n} "{p}";' for n, (p, _) in enumerate(accepted)]


@pytest.mark.parametrize("name", sorted(set(QUOTERS) - {"yaml", "haproxy_words"}))
@pytest.mark.parametrize("value", [None, True, 1.5, ["x"], object()])
def test_only_text_and_whole_numbers_are_written(name, value):
    """
    A mistake in a template never becomes "None" in a file.
    """
    with pytest.raises(ValueError, match="not text"):
        QUOTERS[name](value)


@given(st.lists(texts, max_size=3))
def test_haproxy_reads_back_the_words_of_a_list(values):
    """
    None of them is split, and an empty list is refused: an ACL without a value matches nothing.
    """
    if (text := quoted(quote_haproxy_words, values)) is not None:
        assert text.split() == values
        assert values


def test_a_list_of_words_is_a_list():
    """
    A text would be written letter by letter.
    """
    assert quote_haproxy_words(("10.0.0.0/8", "::1/128")) == "10.0.0.0/8 ::1/128"
    for value in ("10.0.0.0/8", (), None, ("a b",)):
        assert quoted(quote_haproxy_words, value) is None


@given(texts)
def test_a_log_format_stays_within_its_quotes(value):
    """
    Its expressions are read: it is never a fleet's value.
    """
    if (text := quoted(quote_haproxy_format, value)) is not None:
        assert text == f"'{value}'"
        assert "'" not in value


def test_the_instance_is_the_only_specifier():
    """
    `%i` in a path of ours; any other is refused, and the rest is one word.
    """
    assert quote_systemd_instance("/run/slipway/%i/x") == "/run/slipway/%i/x"
    for value in ("%h/%i", "%%i", "%", "a b%i", "", "+%i", "%i\nx", "$x%i"):
        assert quoted(quote_systemd_instance, value) is None, value
