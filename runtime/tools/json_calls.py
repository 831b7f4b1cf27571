"""
Parsers of calls that are JSON objects.
"""

from collections.abc import Collection

from runtime.tools.base import CallParser
from runtime.tools.call_object import CallObject
from runtime.tools.events import Content

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"


class _ObjectParser(CallParser):
    """
    A parser of calls that are JSON objects.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self._names = names
        self._call: CallObject | None = None

    def _open_call(self, raw: str) -> None:
        self._call = CallObject(self._names, self._calls, raw)

    def _read_call(self) -> bool:
        """
        Read on in the call; return whether it is over.
        """
        assert self._call is not None, "a call is open"
        at, events = self._call.feed(self._text)
        self._take(at)
        is_over = self._call.is_done or self._call.is_broken
        if self._is_last and not is_over:
            events += self._call.close()
            is_over = True
        for event in events:
            if isinstance(event, Content):  # what began as a call is none
                self._content(event.raw)
            else:
                self._drop_space()
                self._events.append(event)
        if is_over:
            self._calls += self._call.has_started
        return is_over


class HermesParser(_ObjectParser):
    """
    `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, anywhere: Qwen2.5, Qwen3, Hermes.

    Source: the chat template of Qwen/Qwen2.5-7B-Instruct.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._is_after_call = False

    def _step(self) -> bool:
        if self._call is not None:
            if not self._read_call():
                return False
            self._is_after_call = self._call.is_done
            self._call = None
            return True
        if self._is_after_call:
            self._skip_space()
            if not self._text or self._may_begin_with(CLOSE):
                return False
            if self._text.startswith(CLOSE):
                self._markup(self._take(len(CLOSE)))
            self._is_after_call = False
            return True
        if self._pass_until((OPEN,)) is None:
            return False
        self._open_call(self._take(len(OPEN)))
        return True


class BareJsonParser(_ObjectParser):
    """
    `{"name": ..., "parameters": {...}}` as the whole answer; several as a list, or with `;` or
    white space between them.

    Args:
        tag: Text that begins a call anywhere in the answer; None for none.

    Source: the chat template of meta-llama/Llama-3.1-8B-Instruct, which writes one; vLLM's parser
    `llama3_json` reads several with `;`.
    """

    def __init__(self, names: Collection[str], tag: str | None = None) -> None:
        super().__init__(names)
        self._tag = tag
        self._may_open = True  # at the beginning of the answer, and after a call
        self._is_in_list = False

    def _step(self) -> bool:
        if self._call is not None:
            if not self._read_call():
                return False
            self._may_open, self._call = self._call.is_done, None
            return True
        if self._may_open:
            return self._open_next()
        if self._pass_until(self._tags) is None:
            return False
        self._open_call(self._take(len(self._tags[0])))
        return True

    @property
    def _tags(self) -> tuple[str, ...]:
        return () if self._tag is None else (self._tag,)

    def _open_next(self) -> bool:
        self._skip_space()
        if not self._text or any(self._may_begin_with(tag) for tag in self._tags):
            return False
        head, is_first = self._text[0], not self._calls
        if head == "]" and self._is_in_list:
            self._is_in_list = False
            self._markup(self._take(1))
        elif head == "[" and is_first:
            self._is_in_list = True
            self._open_call(self._take(1))
        elif head == "{" or (head in ",;" and not is_first):
            self._open_call(self._take(1) if head != "{" else "")
        else:
            self._may_open = False
        return True
