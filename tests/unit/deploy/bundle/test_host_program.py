import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import deploy.host
from deploy.bundle.host_program import build_host_program
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


def test_it_runs_where_there_is_no_checkout(program, tmp_path):
    """
    One file, no package installed, any directory; an error is an answer, and exits 0.
    """
    answer = run(program, "slot.explode", cwd=tmp_path)

    assert answer["ok"] is False
    assert answer["error"]["kind"] == "UsageError"


@pytest.mark.parametrize("verb", sorted(set(REQUESTS) - {"facts"}))
def test_every_verb_refuses_an_argument_that_it_does_not_have(program, tmp_path, verb):
    """
    Through the zipapp, in a process of its own: the verb is known and its request is checked.
    """
    document = {"schema": SCHEMA, "args": {"no_such_argument": 1}}

    answer = run(program, verb, stdin=json.dumps(document), cwd=tmp_path)

    assert answer["error"]["kind"] == "UsageError"
    assert "no_such_argument" in answer["error"]["why"]


def test_a_verb_that_is_not_in_it_is_refused_otherwise(program, tmp_path):
    """
    Negative control: the check above tells a verb of the protocol from another.
    """
    document = {"schema": SCHEMA, "args": {"no_such_argument": 1}}

    answer = run(program, "slot.explode", stdin=json.dumps(document), cwd=tmp_path)

    assert "no_such_argument" not in answer["error"]["why"]


@pytest.mark.parametrize("verb", [request.VERB for request in HANDLERS])
def test_every_handler_is_in_it(program, tmp_path, verb):
    """
    The zipapp can import the code of each verb, and nothing of the checkout.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deploy.host.__main__ import handler_of\n"
        "from deploy.host.protocol import REQUESTS\n"
        "handler = handler_of(REQUESTS[sys.argv[2]])\n"
        "print(sys.modules[handler.__module__].__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(program), verb],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )

    assert done.stdout.startswith(f"{program}/deploy/host/")


def test_it_is_the_same_bytes_each_time(tmp_path):
    """
    From another checkout with other times and modes: `inv provision` finds no change.
    """
    copy = tmp_path / "remote"
    shutil.copytree(PACKAGE, copy)
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755)

    assert build_host_program(copy) == build_host_program()


def test_another_line_is_another_program(tmp_path):
    """
    Negative control: what it does is in its bytes.
    """
    copy = tmp_path / "remote"
    shutil.copytree(PACKAGE, copy)
    (copy / "layout.py").write_text((copy / "layout.py").read_text() + "# other\n")

    assert build_host_program(copy) != build_host_program()


def test_a_caller_that_went_away_is_no_error(program):
    """
    The connection may be cut before the answer: the verb is done all the same.
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
