import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.contract import visible_text
from runtime.contract.visible_text import LIMIT, visible
from tests.hostile_text import CI, CORPUS, HIDDEN, complaints

ANY_TEXT = st.text(st.characters(categories=None, codec=None), max_size=300) | st.lists(
    st.sampled_from([*HIDDEN, *CI, "#", "##", "[", ":", "::", " ", "\n", "a", "\u0301", "\\", '"'])
).map("".join)
LIMITS = st.integers(64, 400)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no space left on /dev/sda1", "no space left on /dev/sda1"),
        ("größer: 五 ≥ 3 €", "größer: 五 ≥ 3 €"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("a\x85b\u2028c\u2029d\ve\ff", r"a\x85b\u2028c\u2029d\x0be\x0cf"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("ad\u200bmin", r"ad\u200bmin"),
        ("\U000e0041\ud800\x7f\x00", r"\U000e0041\ud800\x7f\x00"),
        ("\u2800\u3164\ufe0f\u00a0", r"\u2800\u3164\ufe0f\xa0"),
        ("::error::gone", r"\x3a:error::gone"),
        ("  ::error::gone", r"  \x3a:error::gone"),
        ("a ::error::gone", "a ::error::gone"),
        ("::1: no route", "::1: no route"),
        ("x ##[error]gone", r"x #\x23[error]gone"),
        ("##vso[a] ##teamcity[b] ## c", r"#\x23vso[a] #\x23teamcity[b] ## c"),
        ("e\u0301 e\u0301\u0301\u0301\u0301\u0301", "e\u0301 e\u0301\u0301\u0301\u0301\\u0301"),
        ("\u0301", r"\u0301"),
    ],
)
def test_what_does_not_show_is_an_escape(text, shown):
    """
    What shows stays as it is, in any script.
    """
    assert visible(text) == shown


@pytest.mark.parametrize("char", HIDDEN, ids=ascii)
def test_every_hidden_character_is_an_escape(char):
    assert visible(f"a{char}b").isascii()
    assert visible(f"a{char}b").isprintable()


@given(ANY_TEXT, LIMITS)
@example("##" + "x" * 60, 64)
@example("\n" * 100, 64)
def test_any_text_becomes_one_visible_line(text, limit):
    """
    Printable, one line, encodable, bounded, no CI command; and a second time changes nothing.
    """
    shown = visible(text, limit=limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert len(shown.splitlines()) <= 1
    assert complaints(shown.encode()) == []
    assert visible(shown, limit=limit) == shown
    assert visible(shown, limit=limit, keep_lines=True) == shown


@given(ANY_TEXT, LIMITS)
def test_lines_of_ours_stay(text, limit):
    """
    With keep_lines only `\\n` ends a line, and no line is a CI command.
    """
    shown = visible(text, limit=limit, keep_lines=True)
    assert shown.replace("\n", "").isprintable()
    assert len(shown) <= limit
    assert complaints(shown.encode()) == []
    assert visible(shown, limit=limit, keep_lines=True) == shown


@given(st.text(st.characters(categories=["L", "N", "P", "S"], codec="ascii"), max_size=900))
def test_plain_ascii_text_is_not_changed(text):
    if not complaints(text.encode()):
        assert visible(text, limit=10_000) == text


def test_a_text_that_was_cut_says_so():
    assert visible("x" * 200, limit=100) == "x" * 74 + "(+126 characters)"
    assert visible("\x1b" * 200, limit=100) == r"\x1b" * 18 + "(+182 characters)"
    assert visible("x" * 100, limit=100) == "x" * 100
    with pytest.raises(ValueError, match="at least 64"):
        visible("x", limit=63)


@pytest.mark.parametrize("text", CORPUS, ids=lambda text: ascii(text)[:40])
def test_the_corpus_is_harmless(text):
    assert complaints(visible(text).encode()) == []
    assert len(visible(text)) <= LIMIT


def test_the_rule_for_outputs_would_notice():
    """
    Negative control: the corpus itself is not harmless, and neither is half of the function.
    """
    for text in [*HIDDEN, *CI]:
        if text not in ("\n", "%0A::error::x", "ok%0D%0A::error::x"):
            raw = text.encode(errors="surrogatepass")
            assert complaints(raw), ascii(text)


@pytest.mark.parametrize("part", ["_BLANK", "_COMMAND"])
def test_each_part_is_needed(part, monkeypatch):
    """
    Negative control: without one of its tables, some text of the corpus passes.
    """
    monkeypatch.setattr(visible_text, part, visible_text.re.compile(r"(?!)"))
    assert [t for t in CORPUS if complaints(visible(t).encode())]


def test_only_what_shows_is_printable():
    """
    Over all of Unicode: no control, format, separator, surrogate or private character is kept.
    """
    kept = "".join(c for c in map(chr, range(0x110000)) if visible(f"a{c}") == f"a{c}")
    assert {unicodedata.category(c)[0] for c in kept if c != " "} <= set("LMNPS")
