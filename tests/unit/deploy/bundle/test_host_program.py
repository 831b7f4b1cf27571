import io
import json
import marshal
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import deploy.host
from deploy.bundle.host_program import build_fed_program, build_host_program
from deploy.host.__main__ import HANDLERS
from deploy.host.protocol import REQUESTS, SCHEMA

PACKAGE = Path(deploy.host.__file__).parent


def run(tool, *argv, stdin="", cwd):
    done = subprocess.run(
        [sys.executable, "-I", str(tool), *argv],
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "slipway-host.pyz"
    path.write_bytes(build_host_program())
    return path


# One process a verb, forked before the code of any verb is imported.  Started one by one, each
# would compile again what all of them import.
_FORKED = """
import contextlib, io, json, os, runpy, sys, traceback
program, text, *verbs = sys.argv[1:]
sys.path.insert(0, program)
from deploy.host.__main__ import handler_of
from deploy.host.protocol import REQUESTS

def handler(verb):
    print(sys.modules[handler_of(REQUESTS[verb]).__module__].__file__)

def refusal(verb):
    sys.argv, sys.stdin = [program, verb], io.StringIO(text)
    runpy.run_path(program, run_name="__main__")

def child(work, verb, out):
    code = 1
    try:
        os.dup2(out, 1)
        work(verb)
        code = 0
    except SystemExit as ending:
        code = ending.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)

printed = {}
for verb in verbs:
    printed[verb] = {}
    for work in (handler, refusal):
        reading, writing = os.pipe()
        if os.fork() == 0:
            child(work, verb, writing)
        os.close(writing)
        with open(reading) as file:
            answer = file.read()
        printed[verb][work.__name__] = [os.waitstatus_to_exitcode(os.wait()[1]), answer]
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed(program):
    """
    Exit status and output by verb: "handler" prints the file that its code is from, "refusal" the
    answer to an unknown argument.
    """
    document = {"schema": SCHEMA, "args": {"no_such_argument": 1}}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _FORKED, str(program), json.dumps(document), *REQUESTS],
        capture_output=True,
        text=True,
        check=True,
        cwd=program.parent,
    )
    return json.loads(done.stdout)


def test_it_runs_without_a_checkout(program, tmp_path):
    """
    One file, without installed packages, in any directory; an error is an answer with exit code 0.
    """
    answer = run(program, "slot.explode", cwd=tmp_path)

    assert answer["ok"] is False
    assert answer["error"]["kind"] == "UsageError"


@pytest.mark.parametrize("verb", sorted(REQUESTS))
def test_every_verb_refuses_an_unknown_argument(printed, verb):
    """
    Through the zipapp in a process of its own: the verb is known, and its request is checked.
    """
    status, answer = printed[verb]["refusal"]

    assert status == 0
    error = json.loads(answer)["error"]
    assert error["kind"] == "UsageError"
    assert "no_such_argument" in error["why"]


def test_an_unknown_verb_is_refused_with_another_error(program, tmp_path):
    """
    Negative control: the check above distinguishes known verbs from unknown ones.
    """
    document = {"schema": SCHEMA, "args": {"no_such_argument": 1}}

    answer = run(program, "slot.explode", stdin=json.dumps(document), cwd=tmp_path)

    assert "no_such_argument" not in answer["error"]["why"]


@pytest.mark.parametrize("verb", [request.VERB for request in HANDLERS])
def test_every_handler_is_in_it(program, printed, verb):
    """
    The zipapp can import the code of each verb, without the checkout.
    """
    status, file = printed[verb]["handler"]

    assert status == 0
    assert file.startswith(f"{program}/deploy/host/")


def test_it_is_the_same_bytes_each_time(tmp_path):
    """
    From a checkout with other times and modes: `inv provision` finds no change.
    """
    copy = tmp_path / "remote"
    shutil.copytree(PACKAGE, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755)

    assert build_host_program(copy) == build_host_program()


def test_another_line_is_another_program(tmp_path):
    """
    Negative control: its bytes depend on the code.
    """
    copy = tmp_path / "remote"
    shutil.copytree(PACKAGE, copy)
    (copy / "layout.py").write_text((copy / "layout.py").read_text() + "# other\n")

    assert build_host_program(copy) != build_host_program()


def test_a_lost_connection_does_not_stop_a_verb(program):
    """
    The connection may end before the answer; the verb completes.
    """
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-I", str(program), "slot.explode"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, b"")


def fed_modules(tmp_path, **changed):
    """
    Return where a program fed over standard input, with *changed* contents, loads
    `deploy.host.facts` from.
    """
    path = tmp_path / "fed.zip"
    with zipfile.ZipFile(io.BytesIO(build_fed_program())) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    change = changed.get("bytecode", lambda data: data)
    contents = {n: change(data) if n.endswith(".pyc") else data for n, data in contents.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    script = (
        f"import sys; sys.path.insert(0, {str(path)!r}); import deploy.host.facts as facts; "
        "print(facts.__file__); from deploy.host.__main__ import handle"
    )
    process = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False
    )
    return process.returncode, process.stdout.strip().removeprefix(f"{path}/"), process.stderr


def test_a_fed_program_runs_from_bytecode_of_the_same_python(tmp_path):
    """
    A host with the controller's Python version compiles nothing.
    """
    assert fed_modules(tmp_path) == (0, "deploy/host/facts.pyc", "")


def test_another_python_compiles_the_sources_of_a_fed_program(tmp_path):
    """
    It ignores bytecode of another version.
    """
    code, module, _ = fed_modules(tmp_path, bytecode=lambda data: b"\0\0\r\n" + data[4:])
    assert (code, module) == (0, "deploy/host/facts.py")


def test_the_bytecode_of_a_fed_program_matches_its_sources(tmp_path):
    """
    A changed source is compiled again, despite cached bytecode.
    """
    package = tmp_path / "host"
    shutil.copytree(PACKAGE, package)
    module = package / "text.py"
    for line in ("WORD = 1\n", "WORD = 22\n", "WORD = 333\n"):
        module.write_text(line)
        with zipfile.ZipFile(io.BytesIO(build_fed_program(package))) as archive:
            bytecode = archive.read("deploy/host/text.pyc")
        names = {}
        exec(marshal.loads(bytecode[16:]), names)
        assert f"WORD = {names['WORD']}\n" == line
