from deploy.host import layout
from deploy.host.protocol import Call, Status
from deploy.host.rpc import encode_request, parse_answer


def test_the_environment_of_the_row_is_complete(root, expected):
    """
    The environment of the lock is complete, owned by root, and has the torch of the row.
    """
    venv = f"{layout.VENVS}/{expected['lock']}"
    shown = root.check_output(f"stat -c '%U %a' {venv}/.complete")
    assert shown == "root 644"
    version = root.check_output(f"cat {venv}/lib/python3.*/site-packages/torch/version.py")
    assert f"__version__ = '{expected['torch']}'" in version


def test_its_packages_agree(root, expected):
    """
    uv finds no package missing and no requirement broken.
    """
    python = f"{layout.VENVS}/{expected['lock']}/bin/python"
    shown = root.run(f"{layout.UV} --no-cache pip check --python {python}")
    assert shown.rc == 0, shown.stderr


def test_the_host_program_answers(root):
    """
    The host program runs with the host's own Python, and speaks the protocol of this release.
    """
    request = encode_request(Status(), Call(actor="verify")).decode()
    shown = root.run(f"echo %s | python3 {layout.HOST_PROGRAM} {Status.VERB}", request)
    assert shown.rc == 0, shown.stderr
    assert parse_answer(Status(), shown.stdout.splitlines()[-1]).boot_id
