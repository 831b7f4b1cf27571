r"""
The log of the runtime: one entry a line, whatever a client, a model or a file has in its texts.
"""

import ast
import io
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given

from runtime.contract.errors import ConfigError
from runtime.contract.visible_text import indented
from runtime.engines.base import logs
from runtime.engines.base.logs import VisibleFormatter, configure_logging
from tests.hostile_text import CORPUS, complaints
from tests.unit.runtime.contract.test_visible_text import ANY_TEXT

ROOT = Path(__file__).parents[5]
FORGED = "x\nruntime.ready version=v9\n<0>panic"


class Stream(io.StringIO):
    """
    Attributes:
        guard: What stands for standard error.
    """


@pytest.fixture
def log(monkeypatch):
    """
    Return a stream that has what the runtime logs; undo the configuration afterwards.
    """
    root, stream = logging.getLogger(), Stream()
    for name in ("excepthook", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging()
    stream.guard = sys.stderr
    return stream


def entries(stream):
    return [line for line in stream.getvalue().splitlines() if not line.startswith("  ")]


def emit(text):
    """
    Log *text* in each way in which foreign text gets into the log.
    """
    root = logging.getLogger()  # pytest's own handlers take no surrogates
    root.handlers = [h for h in root.handlers if isinstance(h.formatter, VisibleFormatter)]
    log = logging.getLogger("runtime.server")
    log.info("request.raised id=%s route=%s", "r1", text)
    log.info("engine.died why=%r", text)
    log.error("runtime.failed exit_code=%d\n%s", 78, ConfigError(text, why=text, fix=text))
    log.warning("vllm.said %s", text)
    try:
        raise ValueError(text)
    except ValueError as error:
        log.exception("engine.load_failed model=%s", text)
        sys.excepthook(type(error), error, error.__traceback__)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
    thread = threading.Thread(target=lambda: {}[text])
    thread.start()
    thread.join()


@pytest.mark.parametrize("text", [*CORPUS, FORGED], ids=lambda text: ascii(text)[:40])
def test_hostile_text_is_only_shown(log, text):
    """
    Eight entries, and no more: nothing in a text begins another one.
    """
    emit(text)
    assert complaints(log.getvalue().encode(errors="surrogatepass")) == []
    names = [entry.split(" ")[0] for entry in entries(log)]
    assert len(names) == 8
    assert names[:3] == ["request.raised", "engine.died", "runtime.failed"]
    assert not any(entry.startswith(("runtime.ready", "<")) for entry in entries(log))


def test_what_others_print_is_only_shown(log):
    """
    Warnings of libraries go to standard error past the log.
    """
    log.guard.write("a\x1b[31m\u202e\n")
    assert log.getvalue() == "a\\x1b[31m\\u202e\n"


def test_without_the_formatter_a_text_forges_an_entry(log, monkeypatch):
    """
    Negative control: the entries of `FORGED` are in the log.
    """
    monkeypatch.setattr(logs.VisibleFormatter, "format", logging.Formatter.format)
    emit(FORGED)
    assert "runtime.ready version=v9" in entries(log)
    assert "<0>panic" in entries(log)


def test_ordinary_entries_stay_as_they_are():
    record = logging.LogRecord(
        "x", logging.INFO, "x.py", 1, "a=%s b=%d c=%.2f", ("ü", 2, 3.0), None
    )
    assert VisibleFormatter("%(message)s").format(record) == "a=ü b=2 c=3.00"
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "a=%(a)s", ({"a": 1},), None)
    assert VisibleFormatter("%(message)s").format(record) == "a=1"


@given(ANY_TEXT)
def test_only_the_first_line_begins_at_the_margin(text):
    shown = indented(text)
    assert shown.replace("\n", "").isprintable()
    assert all(line.startswith("  ") for line in shown.split("\n")[1:])
    assert indented(shown) == shown


def test_only_one_module_configures_the_log():
    """
    No other module of the runtime prints to standard error, or has a handler of its own.
    """
    printing = {
        "runtime/__main__.py": "hands the streams to `check`",
        "runtime/chat/__main__.py": "its answer to `inv bundle`, as JSON",
        "runtime/engines/base/logs.py": "configures the log",
        "runtime/structured/worker.py": "closes standard error: a grammar's parser may write there",
    }
    found = {}
    for path in ROOT.glob("runtime/**/*.py"):
        name = str(path.relative_to(ROOT))
        if not name.startswith(
            "runtime/bench/"
        ):  # a program for people, of numbers of this machine
            found |= dict.fromkeys([name] if list(prints(path.read_text())) else [])
    assert set(found) == set(printing)


def prints(source):
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield node.lineno
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr"):
                yield node.lineno
            case ast.Attribute(attr="basicConfig" | "StreamHandler" | "print_exc"):
                yield node.lineno


def test_the_rule_would_notice():
    """
    Negative control.
    """
    for source in ("print(1)", "import sys\nsys.stderr.write('x')", "logging.basicConfig()"):
        assert list(prints(source))


def test_a_process_that_crashes_logs_one_entry():
    """
    As a process: the traceback is indented below `runtime.crashed`.
    """
    code = (
        "from runtime.engines.base.logs import configure_logging\n"
        "configure_logging()\n"
        f"raise ValueError({FORGED!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    first, *others = done.stderr.splitlines()
    assert (done.returncode, first) == (1, "runtime.crashed")
    assert all(line.startswith("  ") for line in others)
    assert any("ValueError: x" in line for line in others)
