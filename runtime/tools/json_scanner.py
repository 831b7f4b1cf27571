"""
Checks JSON text as it comes, in linear time and without keeping it.
"""

import re

MAX_DEPTH = 128  # of objects and lists
MAX_NUMBER = 1000  # characters; Python refuses integers of more than 4300 digits

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_NUMBER_CHARS = re.compile(r"[-+.0-9eE]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JsonScanner:
    """
    Recognises one JSON value, without white space around it.

    Strict as RFC 8259: no NaN, no control characters in strings.  A key may repeat.

    Attributes:
        is_done: The value is complete.  That of a number shows at the next character.
        is_broken: The next character can't continue the value.
    """

    def __init__(self) -> None:
        self.is_done = self.is_broken = False
        self._closers: list[str] = []  # of the open objects and lists
        self._state = self._value
        self._is_key = False
        self._rest = ""  # of a literal
        self._hex_left = 0  # digits of \uXXXX
        self._number = ""

    def feed(self, text: str, at: int = 0) -> int:
        """
        Read *text* from *at*; return where the value ends or breaks, else its length.
        """
        while at < len(text) and not self.is_done and not self.is_broken:
            at = self._state(text, at)
        return at

    def _value(self, text: str, at: int) -> int:
        char = text[at]
        if char in "{[":
            if len(self._closers) == MAX_DEPTH:
                return self._break(at)
            self._closers.append("}" if char == "{" else "]")
            self._state = self._key_or_end if char == "{" else self._value_or_end
        elif char == '"':
            self._is_key, self._state = False, self._string
        elif char in "-0123456789":
            self._number, self._state = "", self._in_number
            return at
        elif char in _LITERALS:
            self._rest, self._state = _LITERALS[char], self._literal
        else:
            return self._break_unless_space(text, at)
        return at + 1

    def _value_or_end(self, text: str, at: int) -> int:
        if text[at] == "]":
            return self._close(at)
        if text[at] not in " \t\n\r":
            self._state = self._value
            return at
        return self._skip_space(text, at)

    def _key_or_end(self, text: str, at: int) -> int:
        return self._close(at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._is_key, self._state = True, self._string
            return at + 1
        return self._break_unless_space(text, at)

    def _colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._state = self._value
            return at + 1
        return self._break_unless_space(text, at)

    def _after_value(self, text: str, at: int) -> int:
        if text[at] == ",":
            self._state = self._key if self._closers[-1] == "}" else self._value
            return at + 1
        if text[at] == self._closers[-1]:
            return self._close(at)
        return self._break_unless_space(text, at)

    def _string(self, text: str, at: int) -> int:
        at = _end(_PLAIN, text, at)
        if at == len(text):
            return at
        if text[at] == "\\":
            self._state = self._escape
        elif text[at] != '"':
            return self._break(at)
        elif self._is_key:
            self._state = self._colon
        else:
            self._ended()
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._hex_left, self._state = 4, self._unicode
        elif text[at] in '"\\/bfnrt':
            self._state = self._string
        else:
            return self._break(at)
        return at + 1

    def _unicode(self, text: str, at: int) -> int:
        if text[at] not in _HEX:
            return self._break(at)
        self._hex_left -= 1
        if not self._hex_left:
            self._state = self._string
        return at + 1

    def _literal(self, text: str, at: int) -> int:
        if text[at] != self._rest[0]:
            return self._break(at)
        self._rest = self._rest[1:]
        if not self._rest:
            self._ended()
        return at + 1

    def _in_number(self, text: str, at: int) -> int:
        end = min(_end(_NUMBER_CHARS, text, at), at + MAX_NUMBER - len(self._number))
        self._number += text[at:end]
        if end == len(text):
            return end
        if not _NUMBER.fullmatch(self._number):
            return self._break(end)
        self._ended()
        return end

    def _close(self, at: int) -> int:
        self._closers.pop()
        self._ended()
        return at + 1

    def _ended(self) -> None:
        self.is_done = not self._closers
        self._state = self._after_value

    def _skip_space(self, text: str, at: int) -> int:
        return _end(_SPACE, text, at)

    def _break_unless_space(self, text: str, at: int) -> int:
        # No space before the value: that is not part of it.
        if text[at] in " \t\n\r" and self._closers:
            return self._skip_space(text, at)
        return self._break(at)

    def _break(self, at: int) -> int:
        self.is_broken = True
        return at


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None, "it matches an empty text"
    return found.end()
