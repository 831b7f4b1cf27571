"""
SIGKILL at every step of a commit.
"""

import os
import sys
from pathlib import Path

from deploy.bundle.send import stage
from deploy.host.system import ProgramResult
from tests.unit.deploy.host.fakes import TemporaryHost, short_directory
from tests.unit.deploy.host.staged import Link, assert_whole, provision, send

_STOPS = ("rename", "replace", "symlink_to")


def quick_uv(host):
    """
    Fake uv and the Python of the venv, so that a commit takes milliseconds.
    """
    real = host.system.run

    def run(argv, **more):
        if argv[0] != "systemd-run":
            return real(argv, **more)
        host.system.before(argv)
        program = argv[argv.index("--") + 1 :]
        if program[:2] == [str(host.layout.uv), "venv"]:
            venv = Path(program[-1])
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").symlink_to(Path(sys.executable).resolve())
        return ProgramResult(0, "", "")

    host.system.run = run


def test_a_commit_that_is_killed_anywhere_is_finished_by_the_next(workshop, keys, bundle):
    """
    SIGKILL before every rename and every program: a release is there completely or not at all, and
    a second commit completes it.
    """
    kills = 0
    while True:
        with short_directory() as root:
            host = TemporaryHost(root)
            provision(host, keys)
            quick_uv(host)
            if not killed_in_a_child(host, bundle, workshop, kills):
                break
            release = host.layout.release(bundle.digest)
            if release.exists():
                assert_whole(release, bundle)
            assert host.status().unfinished.step == "stage.commit"

            send(host, bundle, workshop)

            assert_whole(release, bundle)
            assert host.status().unfinished is None
        kills += 1
    assert kills > 12


def killed_in_a_child(host, bundle, workshop, number):
    """
    Stage in a child process that dies without clean-up before effect *number* of the commit; return
    whether it got that far.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            left = [number]

            def count(*_):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

            def counted(real):
                def work(self, *args, **kwargs):
                    count()
                    return real(self, *args, **kwargs)

                return work

            link = Link(host)
            real = link.call

            def call(request, *, timeout_s):
                if request.VERB == "stage.commit":
                    host.system.before = count
                    for name in _STOPS:
                        setattr(Path, name, counted(getattr(Path, name)))
                return real(request, timeout_s=timeout_s)

            link.call = call
            stage(bundle, client=link, wheels=workshop.wheels)
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(ended)
    assert code in (0, 9)
    return code == 9
