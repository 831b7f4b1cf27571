"""
sudo with a password, against a program in its place that reads it as sudo does.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.sudo_password import with_sudo_password
from deploy.errors import CommandFailed, UsageError
from deploy.inventory.host_document import host_document
from deploy.inventory.schema import Fleet
from deploy.transport import client
from deploy.transport.ssh import SshTransport
from deploy.transport.sudo import PASSWORD_VARIABLE, sudo_password, under_sudo
from tests.unit.deploy.transport import loopback

PASSWORD = "it's $a \\pass*word"
# As sudo 1.9: byte by byte, three attempts, messages on standard error.  Fails on other flags.
SUDO = """\
#!{python}
import os, sys
arguments, flags = sys.argv[1:], set()
while arguments and arguments[0].startswith("-") and arguments[0] != "--":
    flag = arguments.pop(0)
    if flag == "-p":
        assert arguments.pop(0) == ""
    flags.add(flag)
if arguments[0] == "--":
    arguments.pop(0)
assert flags <= {{"-n", "-k", "-S", "-p", "-H"}}, flags
rules = open({rules!r}).read()
if rules == "requiretty":
    sys.exit("sudo: sorry, you must have a tty to run sudo")
if rules == "password":
    if "-n" in flags:
        sys.exit("sudo: a password is required")
    for _ in range(3):
        line = b""
        while (one := os.read(0, 1)) not in (b"", b"\\n"):
            line += one
        if line.decode(errors="replace") == {password!r}:
            break
        print("Sorry, try again.", file=sys.stderr, flush=True)
    else:
        sys.exit("sudo: 3 incorrect password attempts")
os.execvp(arguments[0], arguments)
"""


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """
    A server where the user is not root for us, and `sudo` is ours.
    """
    monkeypatch.setattr(loopback, "USER", "ops")
    programs, rules = tmp_path / "bin", tmp_path / "rules"
    programs.mkdir()
    text = SUDO.format(python=sys.executable, rules=str(rules), password=PASSWORD)
    (programs / "sudo").write_text(text)
    (programs / "sudo").chmod(0o755)
    rules.write_text("password")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with loopback.LoopbackSshd(tmp_path) as server:
        server.rules = rules
        yield server


@pytest.fixture
def transport(sshd):
    opened = SshTransport(sshd.host(user="ops", sudo_password=True))
    yield opened
    opened.close()


@pytest.mark.parametrize("rules", ["password", "none"])
def test_a_command_gets_its_own_input_and_never_the_password(sshd, transport, rules):
    """
    Also where sudo asks for none: the host's rules say so, not the fleet file.
    """
    sshd.rules.write_text(rules)
    content = bytes(range(256)) * 1000
    done = transport.run(["sudo", "-n", "sha256sum"], timeout_s=20, stdin=content)
    expected = subprocess.run(["sha256sum"], input=content, capture_output=True, check=True)
    assert done.stdout == expected.stdout.decode()
    assert transport.run(["sudo", "-n", "cat"], timeout_s=20).stdout == ""
    done = transport.run(["sudo", "-n", "sh", "-c", "exit 7"], timeout_s=20, check=False)
    assert done.returncode == 7
    assert not any(PASSWORD in command or "pass*" in command for command in sshd.commands)


def test_a_file_is_put_whole(transport, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(os.urandom(600_000))
    transport.put(local, str(tmp_path / "remote"), timeout_s=20)
    assert (tmp_path / "remote").read_bytes() == local.read_bytes()


def test_a_command_without_sudo_gets_no_password(transport):
    assert transport.run(["cat"], timeout_s=20, stdin=b"x").stdout == "x"


@pytest.mark.parametrize(
    ("rules", "settings", "word", "fix"),
    [
        ("password", {"sudo_password": False}, "a password is required", "ssh.sudo_password"),
        ("requiretty", {}, "must have a tty", "!requiretty"),
    ],
)
def test_a_refusal_of_sudo_has_its_own_remedy(sshd, rules, settings, word, fix):
    """
    Of any verb: it is not the host program that is to be repaired.
    """
    sshd.rules.write_text(rules)
    host = sshd.host(**{"user": "ops", "sudo_password": True} | settings)
    transport = SshTransport(host)
    from deploy.host.protocol import Status

    with pytest.raises(CommandFailed) as caught:
        client.HostClient(transport, actor="me", sudo=True).call(Status())
    transport.close()
    assert "sudo refuses ops" in caught.value.what
    assert word in caught.value.why
    assert fix in caught.value.fix


def test_a_wrong_password_is_named_and_not_shown(sshd, transport, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-7")
    with pytest.raises(CommandFailed) as caught:
        transport.run(["sudo", "-n", "true"], timeout_s=20)
    assert "incorrect password" in caught.value.why
    assert "wrong-7" not in str(caught.value)


_WORKER = """
from gevent import monkey
monkey.patch_all()
import json, sys
from pyinfra.api import Config, Inventory, State
from pyinfra.api.command import StringCommand
from deploy.inventory.host_document import host_of
from deploy.provision.connector import BoundedConnector, ConnectorTransport, input_of
inventory = Inventory((["n1"], {}))
connector = BoundedConnector(
    State(inventory, Config()), inventory.get_host("n1"), host_of(json.loads(sys.argv[1]))
)
connector.connect()
done, output = connector.run_shell_command(
    StringCommand("cat; echo $((6 * 7))"), _sudo=True, _stdin=input_of(b"in\\n")
)
assert done and output.stdout == "in\\n42", output
transport = ConnectorTransport(connector)
assert transport.run(["sudo", "-n", "cat"], timeout_s=20, stdin=b"in").stdout == "in"
connector.disconnect()
print("done")
"""


def test_provisioning_uses_the_password(sshd):
    """
    Operations of pyinfra and calls of the host program.
    """
    document = json.dumps(host_document(sshd.host(user="ops", sudo_password=True)))
    argv = [sys.executable, "-c", _WORKER, document]
    env = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "done\n", done.stderr[-2000:]
    assert not any("pass*" in command for command in sshd.commands)


def test_the_password_comes_from_the_variable_or_is_asked_for_once(sshd, monkeypatch):
    """
    Without a terminal a missing one is an error before anything connects.
    """
    host = sshd.host(user="ops", sudo_password=True)
    fleet = Fleet.model_construct(name="test", hosts=(host,), others=())
    assert sudo_password(host.ssh, {PASSWORD_VARIABLE: "x"}) == "x"
    assert sudo_password(host.ssh.model_copy(update={"user": "root"}), {}) is None
    for env in ({}, {PASSWORD_VARIABLE: "a\nb"}):
        with pytest.raises(UsageError, match=PASSWORD_VARIABLE if env else "missing"):
            sudo_password(host.ssh, env)
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: asked.append(1) or "typed")
    with_sudo_password(fleet)
    assert asked == []
    monkeypatch.delenv(PASSWORD_VARIABLE)
    with_sudo_password(fleet)
    with_sudo_password(fleet)
    assert (asked, os.environ[PASSWORD_VARIABLE]) == ([1], "typed")
    monkeypatch.delenv(PASSWORD_VARIABLE)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError):
        with_sudo_password(fleet)
    monkeypatch.setenv(PASSWORD_VARIABLE, "x")  # restored at the end


def test_the_guard_is_needed(sshd):
    """
    Negative control: with the password always piped to sudo, a command would read it where the
    rules of the host ask for none.
    """
    sshd.rules.write_text("none")
    argv, before = under_sudo(["sudo", "-n", "cat"], "secret")
    script = argv[2].splitlines()[-1]
    line = ["sh", "-c", f"IFS= read -r p; {script}", *argv[3:]]
    done = subprocess.run(line, input=before, capture_output=True, check=True)
    assert done.stdout == b"secret\n"
