"""
Reasoning and answer.
"""

import pytest

from runtime.tools import ReasoningSplitter
from tests.unit.runtime.tools.forms import joined, raw_of


def split(text, *, size=None, is_inside=False):
    splitter, events = ReasoningSplitter(is_inside=is_inside), []
    for at in range(0, len(text), size or max(len(text), 1)):
        events += splitter.feed(text[at : at + (size or len(text))])
    return events + splitter.close()


@pytest.mark.parametrize(
    ("text", "is_inside", "reasoning", "content"),
    [
        ("Blue.", False, "", "Blue."),
        ("<think>\nBy mass\nand size.\n</think>\n\nJupiter.\n", False, "By mass\nand size.",
         "Jupiter.\n"),
        ("\n<think>a</think>b", False, "a", "b"),
        ("<think></think>b", False, "", "b"),
        ("<think> \n </think>b", False, "", "b"),
        ("<think>a", False, "a", ""),
        ("<think>a </thin", False, "a </thin", ""),
        ("a</think>b", True, "a", "b"),
        ("\na\n</think>\n", True, "a", ""),
        ("a", True, "a", ""),
        ("b <think>a</think>", False, "", "b <think>a</think>"),
        ("<think>a</think>b<think>c</think>", False, "a", "b<think>c</think>"),
        (" <thin", False, "", " <thin"),
        ("", False, "", ""),
    ],
)  # fmt: skip
def test_reasoning_is_split_off(text, is_inside, reasoning, content):
    """
    Whole and character by character; white space around it is dropped, and nothing else.
    """
    for size in (None, 1):
        events = split(text, size=size, is_inside=is_inside)
        seen = dict(joined(events))
        assert (seen.get("reasoning", ""), seen.get("content", "")) == (reasoning, content)
        assert raw_of(events) == text
