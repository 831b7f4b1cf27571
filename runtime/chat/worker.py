"""
The process that compiles and renders templates: `python -m runtime.chat.worker FD`.

It reads JSON documents from FD: first the templates, then one conversation each.  It answers each
template and each conversation with a byte and a text.  A template can only harm this process: its
CPU time and memory are limited, it holds no secret, and it ends when FD is closed.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

import jinja2
import jinja2.meta

from runtime.chat.content import detect_form
from runtime.chat.environment import make_environment
from runtime.chat.errors import ChatTemplateError, RenderLimitExceeded
from runtime.chat.limits import LIMIT, READS_TOOLS, READY, REFUSED, TEXT, RenderLimits
from runtime.chat.messages import prepare_messages

_MESSAGE_MAX = 4000  # characters of an error


class _TimeUp(BaseException):
    """
    Not an Exception: nothing on the way may take it for an error of the template.
    """


class CompiledTemplate:
    """
    A template, and the form of content that it reads.

    Attributes:
        reads_tools: Whether it reads the variable `tools`.
    """

    def __init__(self, source: str) -> None:
        environment = make_environment()
        parsed = environment.parse(source)
        self._form = detect_form(parsed)
        self.reads_tools = "tools" in jinja2.meta.find_undeclared_variables(parsed)
        self._template = environment.from_string(source)

    def render(self, document: dict[str, Any], most_characters: int) -> str:
        messages = prepare_messages(document["messages"], self._form)
        pieces, size = [], 0
        variables = document["variables"] | {"messages": messages, "tools": document["tools"]}
        for piece in self._template.generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > most_characters:
                raise RenderLimitExceeded(
                    f"the chat template made more than {most_characters} characters"
                )
        return "".join(pieces)


def main(fd: int) -> None:
    # systemd signals the whole unit; conversations are rendered until the API has drained.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, _raise_time_up)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold what clients wrote
    connection = Connection(fd)
    setup = json.loads(connection.recv_bytes())
    limits = RenderLimits(**setup["limits"])
    _limit_memory(limits.memory_bytes)
    templates: dict[str, CompiledTemplate] = {}

    def compile_template(name: str) -> bytes:
        templates[name] = CompiledTemplate(setup["templates"][name])
        return READY + (READS_TOOLS if templates[name].reads_tools else b"")

    def render(data: bytes) -> bytes:
        document = json.loads(data.decode("utf-8", "surrogatepass"))
        text = templates[document["template"]].render(document, limits.characters)
        return TEXT + text.encode("utf-8", "surrogatepass")

    for name in setup["templates"]:
        work = partial(compile_template, name)
        connection.send_bytes(_bounded(work, limits.compile_cpu_s))
    while True:
        try:
            data = connection.recv_bytes()
        except EOFError:
            return
        connection.send_bytes(_bounded(partial(render, data), limits.cpu_s))


def _bounded(work: Callable[[], bytes], cpu_s: float) -> bytes:
    """
    Return the answer of *work*, or how it failed.
    """
    try:
        with _cpu_time(cpu_s):
            return work()
    except _TimeUp:
        return _failed(LIMIT, f"the chat template took more than {cpu_s:g} s")
    except RenderLimitExceeded as error:
        return _failed(LIMIT, str(error))
    except MemoryError:
        return _failed(LIMIT, "the chat template took too much memory")
    except RecursionError:
        return _failed(LIMIT, "the chat template, or what it was given, is nested too deeply")
    except jinja2.TemplateSyntaxError as error:
        return _failed(REFUSED, f"line {error.lineno}: {error.message}")
    except (jinja2.TemplateError, ChatTemplateError) as error:
        return _failed(REFUSED, str(error))
    except Exception as error:
        return _failed(REFUSED, f"the chat template failed: {type(error).__name__}: {error}")


def _failed(kind: bytes, text: str) -> bytes:
    return kind + text[:_MESSAGE_MAX].encode("utf-8", "replace")


@contextmanager
def _cpu_time(limit_s: float) -> Iterator[None]:
    # The first timer raises _TimeUp, again and again: a destructor might swallow one.  It can't
    # interrupt a call into C, so the second one's signal, which has no handler, ends the process.
    signal.setitimer(signal.ITIMER_PROF, limit_s, 0.05)
    signal.setitimer(signal.ITIMER_VIRTUAL, 2 * limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _raise_time_up(signum: int, frame: FrameType | None) -> None:
    raise _TimeUp


def _limit_memory(more_bytes: int) -> None:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - before pathlib is needed
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main(int(sys.argv[1]))
