"""
The scanner accepts what JSON is, and nothing else.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.tools.json_scanner import MAX_DEPTH, MAX_NUMBER, JsonScanner

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)  # fmt: skip


def scan(text, sizes=()):
    """
    Return where the value in *text* ends, None if it is none; fed in parts of *sizes*.
    """
    scanner, at = JsonScanner(), 0
    text += " "  # a number ends with what follows it
    for size in [*sizes, len(text)]:
        part = text[at : at + size]
        read = scanner.feed(part)
        at += read
        if scanner.is_broken or scanner.is_done or read < len(part):
            break
    return at if scanner.is_done else None


def loads(text):
    def refuse(name):
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(1, 9), max_size=9))
def test_any_value_is_read_to_its_end(value, ascii, indent, sizes):
    """
    In any layout, however it is split, with text after it.
    """
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert scan(text, sizes) == len(text)
    assert scan(text + " ]}", sizes) == len(text)


@given(st.text('{}[]",:\\u0aE1-.tfnrules \n\x01', max_size=30))
def test_it_accepts_what_python_reads(text):
    """
    Of texts made of JSON's own characters: the same ones are whole values.
    """
    is_json = loads(text) and text == text.strip(" \n")
    assert (scan(text) == len(text) and bool(text)) == is_json


@pytest.mark.parametrize(
    "text",
    ["", " 1", "01", "1.", "-", "1e", "+1", ".5", "nul", "True", "NaN", "-Infinity", "'a'", '"a',
     '"\n"', '"\\x"', '"\\u12g4"', "[1,]", "[1 2]", '{"a"}', '{"a":}', '{"a":1,}', "{1:2}", "[1}",
     "[", "{", '{"a":1', "9" * (MAX_NUMBER + 1)],
)  # fmt: skip
def test_no_value(text):
    """
    None of these is a whole value, in one part or in many.
    """
    assert scan(text) != len(text) or not text
    assert scan(text, [1] * len(text)) != len(text) or not text


def test_depth_is_bounded():
    """
    A client could not read more of it either.
    """
    assert scan("[" * MAX_DEPTH + "]" * MAX_DEPTH) == 2 * MAX_DEPTH
    assert scan("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)) is None
