"""
The parser of calls of GLM-4 and GLM-4.5.
"""

import json
import re
from collections.abc import Callable, Sequence

from runtime.tools.argument_types import ArgumentTypes, json_text
from runtime.tools.base import SPACE, CallParser, undecided
from runtime.tools.choice import Tool
from runtime.tools.events import ArgumentsDelta, CallEnded, CallStarted, Markup
from runtime.tools.json_scanner import JsonScanner

MAX_KEY = 256  # characters of an argument's name
MAX_SPACE = 8  # characters of white space between a key and its value

OPEN, CLOSE = "<tool_call>", "</tool_call>"
KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"
ASSISTANT = "<|assistant|>"  # GLM-4 writes it before each further call
GLM_MARKS = (OPEN, CLOSE, KEY, KEY_END, VALUE, VALUE_END, ASSISTANT)

# The head of a call, and any beginning of one: both are bounded.
_LINE = re.compile(r"([\w-]{1,64})[ \t]{0,8}\n\s{0,8}(?=\{)", re.ASCII)
_LINE_SO_FAR = re.compile(r"([\w-]{0,64})[ \t]{0,8}(?:\n\s{0,8})?", re.ASCII)
_NAME = re.compile(rf"\s{{0,8}}([\w-]{{1,64}})\s{{0,8}}(?={KEY}|{CLOSE})", re.ASCII)
_NAME_SO_FAR = re.compile(r"\s{0,8}[\w-]{0,64}\s{0,8}(?:</?[a-z_]{0,9})?", re.ASCII)


class GlmParser(CallParser):
    """
    GLM-4.5: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>`, any
    number of arguments, white space between the parts.  A value whose schema is a string is taken
    as it is; any other one is JSON, or else a string too.

    GLM-4: a line with the name of a tool, then a JSON object, as the whole answer.

    Source: the chat templates of zai-org/GLM-4.5 and zai-org/GLM-4-9B-0414.
    """

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._arguments = {tool.name: ArgumentTypes(tool.parameters) for tool in tools}
        self._state: Callable[[], bool] = self._line
        self._name = ""
        self._keys: set[str] = set()
        self._scanner = JsonScanner()
        self._types: frozenset[str] | None = None
        self._value: list[str] = []  # parts of a value that is no string

    def _step(self) -> bool:
        return self._state()

    # Outside of calls

    def _line(self) -> bool:
        """
        At the beginning of the answer, and after a call of GLM-4.
        """
        self._skip_space()
        head = _LINE.match(self._text)
        if head and head[1] in self._arguments:
            self._start(head[1], head.end())
            self._scanner, self._state = JsonScanner(), self._object
            return True
        if not self._is_last:
            so_far = _LINE_SO_FAR.fullmatch(self._text)
            if so_far and any(name.startswith(so_far[1]) for name in self._arguments):
                return False
        self._state = self._outside
        return True

    def _outside(self) -> bool:
        mark = self._pass_until((OPEN, ASSISTANT))
        if mark is None:
            return False
        if mark == ASSISTANT:
            self._markup(self._take(len(ASSISTANT)))
            self._state = self._line
        else:
            self._state = self._head
        return True

    def _head(self) -> bool:
        """
        OPEN is the beginning of the text.
        """
        head = _NAME.match(self._text, len(OPEN))
        if head and head[1] in self._arguments:
            self._start(head[1], head.end())
            self._keys.clear()
            self._state = self._between
            return True
        if not self._is_last and _NAME_SO_FAR.fullmatch(self._text, len(OPEN)):
            return False
        self._content(self._take(len(OPEN)))
        self._state = self._outside
        return True

    # Within a call

    def _object(self) -> bool:
        if text := self._take(self._scanner.feed(self._text)):
            self._delta(text, text)
        if self._scanner.is_done:
            self._end(is_valid=True)
            self._state = self._line
            return True
        return self._broke_off() if self._scanner.is_broken or self._is_last else False

    def _between(self) -> bool:
        """
        After the name, and after a value.
        """
        rest = self._text.lstrip(SPACE)
        if len(rest) < len(self._text):
            self._events.append(Markup(self._take(len(self._text) - len(rest))))
        if self._text.startswith(CLOSE) or (self._is_last and not self._text and not self._is_cut):
            self._delta("}" if self._keys else "{}", "")
            self._end(is_valid=True)
            if self._text:
                self._markup(self._take(len(CLOSE)))
            self._state = self._outside
            return True
        if self._text.startswith(KEY):
            self._state = self._key
            return True
        if not self._text or self._may_begin_with(CLOSE) or self._may_begin_with(KEY):
            return self._broke_off() if self._is_last else False
        return self._broke_off()

    def _key(self) -> bool:
        """
        KEY is the beginning of the text.
        """
        most = len(KEY) + MAX_KEY + len(KEY_END)
        end = self._text.find(KEY_END, 0, most)
        if end < 0:
            return self._broke_off() if self._is_last or len(self._text) >= most else False
        tail = self._text[end + len(KEY_END) :][: MAX_SPACE + len(VALUE)]
        value = tail.lstrip(SPACE)
        skipped = len(tail) - len(value)
        if not value.startswith(VALUE):
            may_follow = VALUE.startswith(value) and skipped <= MAX_SPACE and not self._is_last
            return False if may_follow else self._broke_off()
        key = self._text[len(KEY) : end].strip(SPACE)
        if key in self._keys:
            return self._broke_off()
        self._types = self._arguments[self._name].of(key)
        text = f"{', ' if self._keys else '{'}{_quoted(key)}: {self._quote}"
        self._keys.add(key)
        self._delta(text, self._take(end + len(KEY_END) + skipped + len(VALUE)))
        self._state = self._in_value
        return True

    def _in_value(self) -> bool:
        end = self._text.find(VALUE_END)
        is_whole = end >= 0
        if not is_whole:
            kept = 0 if self._is_last else undecided(self._text, (VALUE_END,))
            end = len(self._text) - kept
        part = self._take(end)
        if not self._quote:
            self._value.append(part)
        elif part:
            self._delta(_quoted(part)[1:-1], part)
        if is_whole:
            value = "".join(self._value)
            text = self._quote or json_text(value, self._types)
            self._delta(text, value + self._take(len(VALUE_END)))
            self._value.clear()
            self._state = self._between
            return True
        return self._broke_off() if self._is_last else False

    @property
    def _quote(self) -> str:
        """
        What a value begins and ends with that is passed on as it comes.
        """
        return '"' if self._types == frozenset(("string",)) else ""

    # What events are made of

    def _start(self, name: str, size: int) -> None:
        self._drop_space()
        self._name = name
        self._events.append(CallStarted(self._calls, name, self._take(size)))

    def _delta(self, text: str, raw: str) -> None:
        self._events.append(ArgumentsDelta(self._calls, text, raw))

    def _end(self, *, is_valid: bool) -> None:
        self._events.append(CallEnded(self._calls, is_valid))
        self._calls += 1

    def _broke_off(self) -> bool:
        """
        End the call; what follows is content.
        """
        if value := "".join(self._value):
            self._events.append(Markup(value))
            self._value.clear()
        self._end(is_valid=False)
        self._state = self._outside
        return True


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
