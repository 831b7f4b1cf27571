r"""
What ./inv starts, as a process: interrupted, with streams that are full, closed or ASCII, and with
words that are no text.  One error, with the exit code of docs/reference/cli.md, never a traceback.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FLEET_MISSING = ["status", "--hosts", "nosuch"]  # exit code 2
TRACES = (b"Traceback", b"Exception ignored", b"KeyboardInterrupt")


@pytest.fixture(autouse=True)
def interruptible():
    """
    ^C reaches the programs that are started, also where these tests run in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(words, *, env=None, code="from deploy.cli.program import main; main()", **streams):
    argv = [sys.executable, "-c", code, *words] if code else [sys.executable, "-m", "deploy.cli"]
    return subprocess.Popen(
        argv if code else [*argv, *words],
        cwd=ROOT,
        env=os.environ | (env or {}),
        **{"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1} | streams,
    )


def run(words, **options):
    process = start(words, **{"code": None} | options)
    out, err = process.communicate(timeout=120)
    for trace in TRACES:
        assert trace not in err, err.decode(errors="replace")
    return process.returncode, out, err


@contextlib.contextmanager
def gone():
    """
    Yield the writing end of a pipe whose reader has left.
    """
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@contextlib.contextmanager
def full():
    with Path("/dev/full").open("wb") as file:
        yield file


@pytest.mark.parametrize("broken", [gone, full])
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_an_error_keeps_its_code_where_stdout_takes_nothing(broken, flags):
    """
    The code of the task's own error; it is told on standard error then.
    """
    with broken() as stdout:
        code, _, err = run([*FLEET_MISSING, *flags], stdout=stdout)
    assert code == 2
    assert err.count(b"fix: ") == 1


@pytest.mark.parametrize("broken", [gone, full])
@pytest.mark.parametrize("words", [FLEET_MISSING, ["matrix"]], ids=["error", "result"])
def test_a_broken_stderr_changes_no_code(broken, words):
    """
    Python would exit with 120 for what it could not flush at the end.
    """
    with broken() as stderr:
        process = start([*words, "--json"], code=None, stderr=stderr)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == (2 if words is FLEET_MISSING else 0)
    assert json.loads(out)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_closed_descriptor_is_no_traceback(closed, tmp_path):
    """
    No file that is opened later becomes standard output.
    """
    command = f'exec {sys.executable} -m deploy.cli "$@" {closed}'
    process = start(["sh", "-c", command, "sh", *FLEET_MISSING], code="import os, sys; "
                    "os.execvp(sys.argv[1], sys.argv[1:])")  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == b""
    assert (b"fix: " in err) is ("2>&-" not in closed)


@pytest.mark.parametrize(
    ("guard", "printed"), [("fill_closed_descriptors()", ""), ("guard_streams()", "leaked\n")]
)
def test_no_file_of_a_child_becomes_its_output(guard, printed, tmp_path):
    """
    Without the guard (negative control) a child prints into the file that it has opened.
    """
    (tmp_path / "child.py").write_text(
        "import contextlib, os\n"
        "os.open('file', os.O_CREAT | os.O_WRONLY)\n"
        "with contextlib.suppress(OSError):\n"
        "    os.write(1, b'leaked\\n')\n"
    )
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys\n"
        "from deploy.cli.streams import *\n"
        f"{guard}\n"
        "subprocess.run([sys.executable, 'child.py'])\n"
    )
    command = ["sh", "-c", f"exec {sys.executable} parent.py >&-"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "file").read_text() == printed


@pytest.mark.parametrize("env", [{}, ASCII, C_LOCALE, ASCII | C_LOCALE], ids=str)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_any_word_in_any_locale_is_one_error(env, flags):
    """
    An argv that is no text of the locale; an output that has no character for it.
    """
    word = b"\xff\xfe" + "größer五\u202e\x1b[31m".encode()
    code, out, err = run(["status", "--hosts", word, *flags], env=env)
    assert code == 2
    if flags:
        error = json.loads(out)["error"]
        assert (error["kind"], error["exit_code"], err) == ("InventoryError", 2, b"")
        json.dumps(error, ensure_ascii=False).encode()  # no surrogate is left
    else:
        assert out == b""
        assert err.count(b"fix: ") == 1
        assert b"\x1b" not in err
        if env.get("PYTHONIOENCODING") == "ascii":
            assert err.isascii()


@pytest.mark.parametrize(
    "words",
    [
        [b"\xff"],
        [b"--\xff"],
        ["status", b"--\xff"],
        ["status", "--limit", b"\xff"],
        ["plan", "--canary", b"\xff"],
        ["bundle", "--model", b"\xff", "--version", b"\xff"],
        ["verify", "--junit", b"\xff/"],
        ["lab.up", "--hosts", b"\xff"],
        ["lab.ssh", b"\xff"],
        ["--config", b"\xff", "status"],
        ["--list", b"\xff"],
        ["rollback", "--to", b"\xff", "--hosts", b"\xff.yml"],
    ],
    ids=ascii,
)
def test_words_that_are_no_text_are_one_document(words):
    code, out, err = run([*words, "--json"], env={"SLIPWAY_CWD": "/"})
    error = json.loads(out)["error"]
    assert code == error["exit_code"]
    assert code != 0
    assert err == b""


INTERRUPTED_IN_A_TASK = """
import sys
from deploy.cli import program
sys.argv[0] = "inv"
import deploy.wiring.checkout
def fleet(*_):
    print("here", file=sys.stderr, flush=True)
    import time
    time.sleep(60)
deploy.wiring.checkout.fleet = fleet
program.main()
"""


@pytest.mark.parametrize("flags", [[], ["--json"], ["--json", "--watch"]], ids=str)
def test_an_interruption_is_one_error(flags):
    """
    ^C in a task: under --json a document, otherwise a word, and 130.
    """
    process = start(["status", *flags], code=INTERRUPTED_IN_A_TASK)
    assert process.stderr.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    if flags:
        error = json.loads(out)["error"]
        assert (error["kind"], error["exit_code"], err) == ("Interrupted", 130, b"")
        assert (out.count(b"\n") == 1) is ("--watch" in flags)
    else:
        assert (out, err) == (b"", b"interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_session_or_job_is_an_interruption(number):
    """
    So that a task stops what it has booted.
    """
    process = start(["status"], code=INTERRUPTED_IN_A_TASK)
    assert process.stderr.readline() == b"here\n"
    process.send_signal(number)
    assert process.communicate(timeout=60) == (b"", b"interrupted\n")
    assert process.returncode == 130


def test_the_end_of_a_session_stays_ignored():
    """
    As under nohup: the task outlives the terminal.
    """
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    code = ignoring + INTERRUPTED_IN_A_TASK.replace("sleep(60)", "sleep(2)")
    process = start(["status"], code=code)
    assert process.stderr.readline() == b"here\n"
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert b"interrupted" not in err
    assert process.returncode not in {130, -signal.SIGHUP}


@pytest.mark.parametrize("broken", [gone, full])
def test_an_interruption_keeps_its_code_where_stdout_takes_nothing(broken):
    with broken() as stdout:
        process = start(["status", "--json"], code=INTERRUPTED_IN_A_TASK, stdout=stdout)
        assert process.stderr.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count(b"interrupted") == 1


@pytest.mark.parametrize("module", ["deploy.errors", "deploy.cli.program", "invoke"])
def test_an_interruption_during_the_imports_is_no_traceback(module, tmp_path):
    """
    Sent while that module is imported; before our boundary is there, it ends as the shell's own.
    """
    code = f"""
import importlib.abc, os, runpy, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("deploy.cli", run_name="__main__")
"""
    process = start(["matrix", "--json"], code=code)
    out, err = process.communicate(timeout=60)
    assert not any(trace in err for trace in TRACES)
    if module == "deploy.errors":
        assert (process.returncode, out) == (-signal.SIGINT, b"")
    else:
        assert process.returncode == 130
        assert json.loads(out)["error"]["kind"] == "Interrupted"


def test_where_interruptions_are_ignored_they_stay_so():
    """
    As under nohup, or in the background of a script.
    """
    code = (
        "import os, runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "runpy.run_module('deploy.cli', run_name='__main__')\n"
    )
    process = start(["matrix", "--json"], code=code)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)
