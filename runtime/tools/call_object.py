"""
A call as a JSON object: `{"name": ..., "arguments": {...}}`.
"""

import json
import re
from collections.abc import Callable, Collection

from runtime.tools.events import ArgumentsDelta, CallEnded, CallStarted, Content, Event, Markup
from runtime.tools.json_scanner import JsonScanner

MAX_HELD = 1 << 18  # characters before the name of a call is known
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("id", "type", "index")  # ignored; any other key makes it no call

_State = Callable[[str, int], int]
_SPACE = re.compile(r"[ \t\n\r]*")


class CallObject:
    """
    Reads one call.  White space before it is part of it.

    The call starts once its name and the beginning of its arguments are known, in any order.
    Without arguments they are `{}`; a string of them is decoded.

    Args:
        names: Of the tools that the request offers; with another name it is no call.
        raw: Text that came before the object and belongs to the call.

    Attributes:
        is_done: The object is complete.
        is_broken: The next character can't be part of a call.  What was read of one that has not
            started became content.
        has_started: A call was found.
    """

    def __init__(self, names: Collection[str], index: int, raw: str) -> None:
        self.is_done = self.is_broken = self.has_started = False
        self._names, self._index = names, index
        self._held = [raw]  # text that no event has
        self._held_chars = len(raw)
        self._state: _State = self._open
        self._keys: set[str] = set()
        self._key = ""
        self._name: str | None = None
        self._scanner = JsonScanner()
        self._token: list[str] = []  # the key or value that is being read
        self._arguments: str | None = None  # complete; the call waits for its name
        self._has_ended = False
        self._events: list[Event] = []

    def feed(self, text: str, at: int = 0) -> tuple[int, list[Event]]:
        """
        Read *text* from *at*; return where the object ends or breaks, and the events.
        """
        while at < len(text) and not self.is_done and not self.is_broken:
            most = len(text) if self.has_started else at + MAX_HELD - self._held_chars
            if most <= at:
                self.is_broken = True
                break
            end = self._state(text if most >= len(text) else text[:most], at)
            self._keep(text[at:end])
            at = end
        if self.is_done or self.is_broken:
            self._finish()
        return at, self._take()

    def close(self) -> list[Event]:
        """
        Return the last events of a text that ends within the object.
        """
        self._finish()
        return self._take()

    def _finish(self) -> None:
        if self.is_done and not self.has_started:
            self._start("{}")
        if self.has_started and not self._has_ended:
            self._events.append(CallEnded(self._index, is_valid=False))
            self._has_ended = True
        if raw := self._release():
            self._events.append(Markup(raw) if self.has_started else Content(raw, raw))

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _keep(self, text: str) -> None:
        if self.has_started and not self._has_ended:
            if text:
                self._events.append(ArgumentsDelta(self._index, text, text))
            if self._scanner.is_done:
                self._events.append(CallEnded(self._index, is_valid=True))
                self._has_ended = True
        elif text:
            self._held.append(text)
            self._held_chars += len(text)

    def _release(self) -> str:
        raw = "".join(self._held)
        self._held.clear()
        return raw

    def _start(self, arguments: str | None) -> None:
        """
        Start the call; without *arguments* they follow as they come.
        """
        assert self._name is not None, "a call starts with its name"
        self.has_started = True
        self._events.append(CallStarted(self._index, self._name, self._release()))
        if arguments is not None:
            self._events.append(ArgumentsDelta(self._index, arguments, ""))
            self._events.append(CallEnded(self._index, is_valid=True))
            self._has_ended = True

    # States: each reads some of the text and returns where it stopped

    def _open(self, text: str, at: int) -> int:
        return self._expect("{", self._first_key, text, at)

    def _first_key(self, text: str, at: int) -> int:
        return self._begin_key(text, at) if text[at] != "}" else self._break(at)

    def _begin_key(self, text: str, at: int) -> int:
        if text[at] != '"':
            return self._break_unless_space(text, at)
        self._begin(self._read_key)
        return at

    def _read_key(self, text: str, at: int) -> int:
        at = self._read_token(text, at)
        if self._scanner.is_done:
            self._key = "arguments" if (key := self._decoded()) in ARGUMENTS else str(key)
            if self._key in self._keys or self._key not in ("name", "arguments", *OTHERS):
                return self._break(at)
            self._keys.add(self._key)
            self._state = self._colon
        return at

    def _colon(self, text: str, at: int) -> int:
        return self._expect(":", self._begin_value, text, at)

    def _begin_value(self, text: str, at: int) -> int:
        if text[at] in " \t\n\r":
            return self._skip_space(text, at)
        if self._key == "name" and text[at] != '"':
            return self._break(at)
        if self._key == "arguments" and text[at] not in '{"n':
            return self._break(at)
        is_streamed = self._key == "arguments" and text[at] == "{" and self._name is not None
        self._begin(self._stream if is_streamed else self._read_value)
        if is_streamed:
            self._start(None)
        return at

    def _stream(self, text: str, at: int) -> int:
        end = self._scanner.feed(text, at)
        if self._scanner.is_broken:
            self.is_broken = True
        if self._scanner.is_done:
            self._state = self._after_value
        return end

    def _read_value(self, text: str, at: int) -> int:
        at = self._read_token(text, at)
        if not self._scanner.is_done:
            return at
        if self._key == "name":
            name = self._decoded()
            if not isinstance(name, str) or name not in self._names:
                return self._break(at)
            self._name = name
        elif self._key == "arguments":
            self._arguments = _arguments("".join(self._token))
            if self._arguments is None:
                return self._break(at)
        if None not in (self._name, self._arguments) and not self.has_started:
            self._start(self._arguments)
        self._state = self._after_value
        return at

    def _after_value(self, text: str, at: int) -> int:
        if text[at] == ",":
            self._state = self._begin_key
            return at + 1
        if text[at] == "}":
            self.is_done = self._name is not None
            return at + 1 if self.is_done else self._break(at)
        return self._break_unless_space(text, at)

    # Their parts

    def _begin(self, state: _State) -> None:
        self._scanner = JsonScanner()
        self._token = []
        self._state = state

    def _read_token(self, text: str, at: int) -> int:
        end = self._scanner.feed(text, at)
        self._token.append(text[at:end])
        if self._scanner.is_broken:
            self.is_broken = True
        return end

    def _decoded(self) -> object:
        return json.loads("".join(self._token))

    def _expect(self, char: str, state: _State, text: str, at: int) -> int:
        if text[at] == char:
            self._state = state
            return at + 1
        return self._break_unless_space(text, at)

    def _skip_space(self, text: str, at: int) -> int:
        found = _SPACE.match(text, at)
        assert found is not None, "it matches an empty text"
        return found.end()

    def _break_unless_space(self, text: str, at: int) -> int:
        return self._skip_space(text, at) if text[at] in " \t\n\r" else self._break(at)

    def _break(self, at: int) -> int:
        self.is_broken = True
        return at


def _arguments(value: str) -> str | None:
    """
    Return the JSON text of an object that *value*, which is JSON, has; None if it has none.
    """
    if value == "null":
        return "{}"
    if value.startswith("{"):
        return value
    text = str(json.loads(value)).strip() or "{}"
    try:
        text.encode()
    except UnicodeEncodeError:  # an escape of half a surrogate pair
        return None
    scanner = JsonScanner()
    end = scanner.feed(text)
    return text if text.startswith("{") and scanner.is_done and end == len(text) else None
