import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import deploy.host
from deploy.bundle.host_program import build_host_program

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


def placed(tmp_path):
    tool = tmp_path / "slipway-host.pyz"
    tool.write_bytes(build_host_program())
    return tool


def test_it_runs_where_there_is_no_checkout(tmp_path):
    """
    One file, no package installed, any directory; an error is an answer, and exits 0.
    """
    answer = run(placed(tmp_path), "slot.explode", cwd=tmp_path)

    assert answer["ok"] is False
    assert answer["error"]["kind"] == "UsageError"


def test_every_verb_is_in_it(tmp_path):
    """
    Each verb gets as far as refusing an argument that it doesn't have.
    """
    tool = placed(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from deploy.host.__main__ import VERBS, _function\n"
        "import deploy.host, json\n"
        "found = [_function(verb).__module__ for verb in VERBS]\n"
        "print(json.dumps([deploy.host.__file__, len(found)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tool)], capture_output=True, text=True, check=True
    )

    file, count = json.loads(done.stdout)
    assert file.startswith(str(tool))
    assert count >= 18


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


def test_another_line_is_another_tool(tmp_path):
    """
    Negative control: what it does is in its bytes.
    """
    copy = tmp_path / "remote"
    shutil.copytree(PACKAGE, copy)
    (copy / "layout.py").write_text((copy / "layout.py").read_text() + "# other\n")

    assert build_host_program(copy) != build_host_program()


def test_a_caller_that_went_away_is_no_error(tmp_path):
    """
    The connection may be cut before the answer: the verb is done all the same.
    """
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-I", str(placed(tmp_path)), "slot.explode"],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, b"")
