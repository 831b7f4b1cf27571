"""
What vLLM prints is text in the runtime's log, never an entry of its own.
"""

import io
import logging

import pytest

from runtime.engines.base.logs import VisibleFormatter
from runtime.engines.vllm import process
from tests.hostile_text import CORPUS, complaints


@pytest.fixture
def log():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(VisibleFormatter("%(message)s"))
    process.log.addHandler(handler)
    process.log.propagate = False
    yield stream
    process.log.removeHandler(handler)
    process.log.propagate = True


def logged(stream, raw):
    process.log.setLevel(logging.INFO)
    process.log_lines(io.BytesIO(raw))
    return stream.getvalue()


@pytest.mark.parametrize("text", CORPUS, ids=lambda text: ascii(text)[:40])
def test_each_line_is_marked_as_its_own(log, text):
    shown = logged(log, text.encode(errors="surrogatepass") + b"\nruntime.ready version=v9\n")
    lines = shown.splitlines()
    assert complaints(shown.encode()) == []
    assert all(line.startswith("vllm: ") for line in lines)
    assert lines[-1] == "vllm: runtime.ready version=v9"


def test_a_line_without_an_end_is_logged_in_parts(log):
    """
    Its memory is bounded.
    """
    shown = logged(log, b"x" * 50_000)
    assert [len(line) for line in shown.splitlines()] == [16390, 16390, 16390, 854]


def test_its_colours_are_taken_off(log):
    assert logged(log, b"\x1b[1;36m(EngineCore pid=7)\x1b[0;0m INFO ready\n") == (
        "vllm: (EngineCore pid=7) INFO ready\n"
    )
