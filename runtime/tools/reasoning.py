"""
Splits a model's reasoning from its answer.
"""

from runtime.tools.base import SPACE, undecided
from runtime.tools.events import Content, Event, Markup, Reasoning

THINK, THINK_END = "<think>", "</think>"


class ReasoningSplitter:
    """
    A state machine: `feed` it the parts of a text, then `close` it.

    Reasoning begins with THINK, before any other text, and ends with THINK_END.  A text that ends
    within it has no answer.  White space around both is dropped.

    Args:
        is_inside: The prompt ended with THINK.
    """

    def __init__(self, *, is_inside: bool = False) -> None:
        self._state = self._inside if is_inside else self._before
        self._text = ""
        self._space: list[str] = []  # of the reasoning, until more of it follows
        self._is_last = False
        self._has_begun = False  # its text

    def feed(self, text: str) -> list[Event]:
        """
        Return the events that follow from the next part of the text: Reasoning, Content, Markup.
        """
        self._text += text
        events: list[Event] = []
        while self._state(events):
            pass
        return events

    def close(self) -> list[Event]:
        """
        Return the last events.
        """
        self._is_last = True
        events = self.feed("")
        if space := "".join(self._space):
            events.append(Markup(space))
            self._space.clear()
        return events

    def _before(self, events: list[Event]) -> bool:
        rest = self._text.lstrip(SPACE)
        self._space.append(self._take(len(self._text) - len(rest)))
        if rest.startswith(THINK):
            events.append(Markup(self._spaces() + self._take(len(THINK))))
            self._state = self._inside
            return True
        if not self._is_last and THINK.startswith(rest):
            return False
        if space := self._spaces():
            events.append(Content(space, space))
        self._state = self._after
        return True

    def _inside(self, events: list[Event]) -> bool:
        end = self._text.find(THINK_END)
        is_whole = end >= 0
        if not is_whole:
            kept = 0 if self._is_last else undecided(self._text, (THINK_END,))
            end = len(self._text) - kept
        part = self._take(end)
        if not self._has_begun:
            body = part.lstrip(SPACE)
            if len(body) < len(part):
                events.append(Markup(part[: len(part) - len(body)]))
            part = body
        if shown := part.rstrip(SPACE):
            text = self._spaces() + shown
            events.append(Reasoning(text, text))
            self._has_begun = True
        self._space.append(part[len(shown) :])
        if is_whole:
            events.append(Markup(self._spaces() + self._take(len(THINK_END))))
            self._state = self._answer_begins
        return is_whole

    def _answer_begins(self, events: list[Event]) -> bool:
        rest = self._text.lstrip(SPACE)
        if len(rest) < len(self._text):
            events.append(Markup(self._take(len(self._text) - len(rest))))
        if not rest:
            return False
        self._state = self._after
        return True

    def _after(self, events: list[Event]) -> bool:
        if self._text:
            text = self._take(len(self._text))
            events.append(Content(text, text))
        return False

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        return taken

    def _spaces(self) -> str:
        space = "".join(self._space)
        self._space.clear()
        return space
