"""
`python -m runtime.engines` where torch can't be imported.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

from runtime.contract import EXIT_ENGINE
from runtime.contract.engine_options import EngineOptions
from runtime.engines.base.protocol import Load, encode
from tests.unit.runtime.started import DEADLINE_S, ROOT

# As torch: a second import finds what the first one left behind, and fails for that.
BROKEN = """
import sys
if hasattr(sys, "was_imported"):
    raise RuntimeError("already has a docstring")
sys.was_imported = True
raise ImportError("libtorch_cuda.so: cannot open shared object file")
"""


@pytest.fixture
def env(tmp_path):
    """
    Variables of a process whose torch is BROKEN.
    """
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(BROKEN)
    return os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}


def test_the_first_error_of_a_failed_import_is_reported(env):
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    fds = ["--fd", str(theirs.fileno()), "--parent", str(os.getpid())]
    with (
        ours,
        subprocess.Popen(
            [sys.executable, "-m", "runtime.engines", *fds],
            env=env,
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        ),
    ):
        theirs.close()
        ours.sendall(encode(Load("/nowhere", 1.0, EngineOptions())))
        with ours.makefile() as lines:
            found = json.loads(lines.readline())
        ours.shutdown(socket.SHUT_RDWR)
    assert "libtorch_cuda.so" in str(found)
    assert "can't be imported" in str(found)
    assert "docstring" not in str(found)


def test_the_check_reports_it_too(env, tmp_path):
    """
    With the exit code of the start.
    """
    (tmp_path / "config.yml").write_text("version: v1\nmodel_name: m\n")
    argv = [sys.executable, "-m", "runtime", "check", "--model", str(tmp_path)]
    done = subprocess.run(
        [*argv, "--config", str(tmp_path / "config.yml")],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == EXIT_ENGINE, done.stderr
    assert "libtorch_cuda.so" in done.stderr
    assert "Traceback" not in done.stderr
