import shlex
from pathlib import Path

from deploy.host import layout
from deploy.host.bundle import sandbox
from deploy.host.protocol import Call, Status
from deploy.host.rpc import encode_request, parse_answer


def test_the_environment_of_the_row_is_complete(root, expected):
    """
    The environment of the lock is complete, owned by root, and has the torch of the row.
    """
    venv = f"{layout.VENVS}/{expected['lock']}"
    shown = root.check_output(f"stat -c '%U:%G %a' {venv}/.complete")
    assert shown == f"root:{layout.USER} 640"
    version = root.check_output(f"cat {venv}/lib/python3.*/site-packages/torch/version.py")
    assert f"__version__ = '{expected['torch']}'" in version


def test_its_packages_agree(root, expected):
    """
    uv finds no package missing and no requirement broken.

    uv starts the Python of the environment, which runs what the wheels brought: in the sandbox.
    """
    venv = f"{layout.VENVS}/{expected['lock']}"
    argv = sandbox.command(
        [layout.UV, "--no-cache", "pip", "check", "--python", f"{venv}/bin/python"],
        timeout_s=60.0,
        readable=[Path(layout.BIN), Path(venv)],
        reads_as=layout.USER,
    )
    shown = root.run(shlex.join(argv))
    assert shown.rc == 0, shown.stderr


def test_code_and_weights_are_for_the_runtime_alone(root, expected):
    """
    In the environment of the row, nothing is readable by all users or writable by any but root.
    """
    venv = f"{layout.VENVS}/{expected['lock']}"
    open_to_others = "! -type l ! -perm 640 ! -perm 750"
    others = f"! -user root -o ! -group {layout.USER}"
    shown = root.check_output(f"find {venv} '(' {open_to_others} -o {others} ')' | head -5")
    assert shown == ""


def test_the_host_program_answers(root):
    """
    The host program runs with the host's own Python, and speaks the protocol of this release.
    """
    request = encode_request(Status(), Call(actor="verify")).decode()
    shown = root.run(f"echo %s | {' '.join(layout.HOST_COMMAND)} {Status.VERB}", request)
    assert shown.rc == 0, shown.stderr
    assert parse_answer(Status(), shown.stdout.splitlines()[-1]).boot_id
