"""
Makes a JUnit file safe to publish: valid XML, and the words of hosts only shown.
"""

from pathlib import Path
from xml.etree import ElementTree

from deploy.foreign_text import visible

_LIMIT = 1 << 16  # characters of one text
_WITH_LINES = "message"  # attribute that has lines of pytest's own


def is_whole(path: Path) -> bool:
    """
    Return whether *path* is an XML document; it is not where pytest was killed while it wrote.
    """
    try:
        ElementTree.parse(path)  # noqa: S314 - written by our own child
    except (OSError, ElementTree.ParseError):
        return False
    return True


def make_visible(root: ElementTree.Element) -> None:
    """
    Make every text and attribute below *root* visible.

    What a host said may hold characters that XML does not have, such as ESC, or that a CI system
    would act on.
    """
    for element in root.iter():
        element.text = _visible_lines(element.text)
        element.tail = _visible_lines(element.tail)
        for name, value in element.attrib.items():
            has_lines = name == _WITH_LINES
            element.set(name, visible(value, limit=_LIMIT, keep_lines=has_lines))


def _visible_lines(text: str | None) -> str | None:
    return text and visible(text, limit=_LIMIT, keep_lines=True)
