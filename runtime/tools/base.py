"""
What all parsers of calls have in common.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection

from runtime.tools.events import Content, Event, Markup

SPACE = " \t\n\r"
PART_CHARS = 4096  # read at once: what is left of them is copied at each step


class CallParser(ABC):
    """
    A state machine: `feed` it the parts of a text, then `close` it.

    The events are the same however the text is split.  Text that is no call becomes content, and
    so does a call of a tool that the request does not offer.  White space beside calls is dropped.
    """

    def __init__(self) -> None:
        self._text = ""  # not read yet: a few characters that a mark may begin with
        self._is_last = self._is_cut = False
        self._calls = 0
        self._space: list[str] = []  # of content, until more of it follows
        self._events: list[Event] = []

    def feed(self, text: str) -> list[Event]:
        """
        Return the events that follow from the next part of the text.
        """
        for at in range(0, len(text), PART_CHARS):
            self._text += text[at : at + PART_CHARS]
            self._read()
        events, self._events = self._events, []
        return events

    def close(self, *, is_cut: bool) -> list[Event]:
        """
        Return the last events.

        Args:
            is_cut: The model did not end the text by itself.
        """
        self._is_last, self._is_cut = True, is_cut
        self._read()
        events = self.feed("")
        if space := "".join(self._space):
            events.append(Content("" if self._calls else space, space))
            self._space.clear()
        return events

    def _read(self) -> None:
        while self._step():
            pass

    @abstractmethod
    def _step(self) -> bool:
        """
        Read on in the text; return False if more of it is needed.
        """

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def _content(self, text: str) -> None:
        stripped = text.rstrip(SPACE)
        if stripped:
            shown = "".join([*self._space, stripped])
            self._space.clear()
            self._events.append(Content(shown, shown))
        if len(stripped) < len(text):
            self._space.append(text[len(stripped) :])

    def _drop_space(self) -> None:
        if space := "".join(self._space):
            self._events.append(Content("", space))
            self._space.clear()

    def _markup(self, raw: str) -> None:
        self._events.append(Markup("".join([*self._space, raw])))
        self._space.clear()

    def _skip_space(self) -> None:
        """
        Read white space, which is content if no call follows.
        """
        rest = self._text.lstrip(SPACE)
        if len(rest) < len(self._text):
            self._space.append(self._take(len(self._text) - len(rest)))

    def _pass_until(self, marks: Collection[str]) -> str | None:
        """
        Read content up to one of *marks*, which is not read; None if none has come yet.
        """
        found = [(at, mark) for mark in marks if (at := self._text.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            self._content(self._take(at))
            return mark
        kept = 0 if self._is_last else undecided(self._text, marks)
        self._content(self._take(len(self._text) - kept))
        return None

    def _may_begin_with(self, mark: str) -> bool:
        """
        Return whether the text is the beginning of *mark*, and may go on.
        """
        return not self._is_last and len(self._text) < len(mark) and mark.startswith(self._text)


def undecided(text: str, marks: Collection[str]) -> int:
    """
    Return the length of the longest end of *text* that one of *marks* begins with.
    """
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0
