import pytest
from hypothesis import given

from deploy.foreign_text import LIMIT, says
from tests.hostile_text import CORPUS, complaints
from tests.unit.runtime.contract.test_visible_text import ANY_TEXT


@pytest.mark.parametrize(
    ("words", "quoted"),
    [
        ("no space left\n", 'n1 says: "no space left"'),
        ("a\nb", r'n1 says: "a\nb"'),
        ('ok"; n2 says: "gone', r'n1 says: "ok\"; n2 says: \"gone"'),
        ("C:\\", 'n1 says: "C:\\\\"'),
        ("\x1b[2J", r'n1 says: "\x1b[2J"'),
        ("::error::x", r'n1 says: "\x3a:error::x"'),
        ("", "n1 says nothing"),
        (" \n", "n1 says nothing"),
    ],
)
def test_words_are_quoted_as_those_of_the_speaker(words, quoted):
    assert says("n1", words) == quoted


@given(ANY_TEXT)
def test_words_cannot_end_the_quotation(words):
    """
    The last character is the only quotation mark without a backslash in front.
    """
    said = says("n1", words)
    if words.strip():
        inner = said.removeprefix('n1 says: "').removesuffix('"')
        assert '"' not in inner.replace("\\\\", "").replace('\\"', "")
        assert not inner.replace("\\\\", "").endswith("\\")
    assert said.isprintable()
    assert len(said) <= LIMIT + 20


@pytest.mark.parametrize("text", CORPUS, ids=lambda text: ascii(text)[:40])
def test_hostile_words_and_names_are_harmless(text):
    assert complaints(says("n1", text).encode()) == []
    assert complaints(says(text, "hello").encode()) == []
