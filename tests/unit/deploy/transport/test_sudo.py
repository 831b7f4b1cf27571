"""
sudo with a password, against a program in its place that reads it as sudo does.
"""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.cli.sudo_password import take_sudo_password, with_sudo_password
from deploy.errors import CommandFailed, UsageError
from deploy.inventory.host_document import host_document
from deploy.inventory.schema import Fleet
from deploy.transport import client, sudo
from deploy.transport.session import SessionTransport
from deploy.transport.ssh import SshTransport
from deploy.transport.sudo import PASSWORD_VARIABLE, sudo_password, under_sudo
from tests.unit.deploy.transport import loopback

PASSWORD = "it's $a \\pass*word"
# As sudo 1.9: it reads byte by byte, tries three times, and keeps credentials for the children of
# one parent.  Fails on other flags.
SUDO = """\
#!{python}
import os, sys
from pathlib import Path
arguments, flags = sys.argv[1:], set()
while arguments and arguments[0].startswith("-") and arguments[0] != "--":
    flag = arguments.pop(0)
    if flag == "-p":
        assert arguments.pop(0) == ""
    flags.add(flag)
if arguments[:1] == ["--"]:
    arguments.pop(0)
assert flags <= {{"-n", "-S", "-p", "-H", "-v"}}, flags
folder = Path({folder!r})
rules = (folder / "rules").read_text().split(", ")
if "requiretty" in rules:
    sys.exit("sudo: sorry, you must have a tty to run sudo")
if "-v" in flags:
    asks = rules[0] != "none"
else:
    asks = rules[0] == "password" or (rules[0] == "cat without" and arguments[0] != "cat")
kept = folder / "kept" / str(os.getppid())
if asks and not kept.exists():
    if "-n" in flags:
        sys.exit("sudo: a password is required")
    assert "-S" in flags
    for _ in range(3):
        line = b""
        while (one := os.read(0, 1)) not in (b"", b"\\n"):
            line += one
        if not line:
            sys.exit("sudo: no password was provided\\nsudo: 1 incorrect password attempt")
        with (folder / "attempts").open("a") as attempts:
            attempts.write("x")
        if line.decode(errors="replace") == {password!r}:
            break
        print("Sorry, try again.", file=sys.stderr, flush=True)
    else:
        sys.exit("sudo: 3 incorrect password attempts")
    if "timeout 0" not in rules:
        kept.touch()
if "-v" not in flags:
    os.execvp(arguments[0], arguments)
"""


class Sudo:
    """
    What `sudo` of the tests is told, and what it has counted.
    """

    def __init__(self, folder):
        self._folder = folder
        (folder / "kept").mkdir(parents=True)
        self.rules("password")

    def rules(self, text):
        (self._folder / "rules").write_text(text)

    @property
    def attempts(self):
        path = self._folder / "attempts"
        return len(path.read_text()) if path.exists() else 0


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """
    A process that knows no password and has tried none.
    """
    monkeypatch.setattr(sudo, "_kept", None)
    sudo.ATTEMPTS.__init__()
    yield
    sudo.ATTEMPTS.__init__()


@pytest.fixture
def sshd(tmp_path, monkeypatch):
    """
    A server where the user is not root for us, and `sudo` is ours.
    """
    monkeypatch.setattr(loopback, "USER", "ops")
    programs = tmp_path / "bin"
    programs.mkdir()
    text = SUDO.format(python=sys.executable, folder=str(tmp_path / "sudo"), password=PASSWORD)
    (programs / "sudo").write_text(text)
    (programs / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with loopback.LoopbackSshd(tmp_path) as server:
        server.sudo = Sudo(tmp_path / "sudo")
        yield server


@pytest.fixture
def transport(sshd):
    opened = SshTransport(sshd.host(user="ops", sudo_password=True))
    yield opened
    opened.close()


@pytest.mark.parametrize("rules", ["password", "none", "cat without", "none, timeout 0"])
def test_a_command_gets_its_own_input_and_never_the_password(sshd, transport, rules):
    """
    Also where sudo asks for none, in general or for this command: the host's rules say so.
    """
    sshd.sudo.rules(rules)
    content = bytes(range(256)) * 1000
    done = transport.run(["sudo", "-n", "sha256sum"], timeout_s=90, stdin=content)
    expected = subprocess.run(["sha256sum"], input=content, capture_output=True, check=True)
    assert done.stdout == expected.stdout.decode()
    assert transport.run(["sudo", "-n", "cat"], timeout_s=90).stdout == ""
    done = transport.run(["sudo", "-n", "sh", "-c", "exit 7"], timeout_s=90, check=False)
    assert done.returncode == 7
    assert not any(PASSWORD in command or "pass*" in command for command in sshd.commands)


def test_a_file_is_put_whole(transport, tmp_path):
    local = tmp_path / "local"
    local.write_bytes(os.urandom(600_000))
    transport.put(local, str(tmp_path / "remote"), timeout_s=90)
    assert (tmp_path / "remote").read_bytes() == local.read_bytes()


def test_a_command_without_sudo_gets_no_password(transport):
    assert transport.run(["cat"], timeout_s=90, stdin=b"x").stdout == "x"


@pytest.mark.parametrize(
    ("rules", "settings", "word", "fix"),
    [
        ("password", {"sudo_password": False}, "a password is required", "ssh.sudo_password"),
        ("requiretty", {}, "must have a tty", "!requiretty"),
        ("password, timeout 0", {}, "timestamp_timeout is 0", "ops timestamp_timeout=1"),
        ("cat without, timeout 0", {}, "timestamp_timeout is 0", "ops timestamp_timeout=1"),
    ],
)
def test_a_refusal_of_sudo_has_its_own_remedy(sshd, rules, settings, word, fix):
    """
    Of any verb: it is not the host program that is to be repaired.
    """
    sshd.sudo.rules(rules)
    host = sshd.host(**{"user": "ops", "sudo_password": True} | settings)
    transport = SshTransport(host)
    from deploy.host.protocol import Status

    with pytest.raises(CommandFailed) as caught:
        client.HostClient(transport, actor="me", sudo=True).call(Status(), timeout_s=90)
    transport.close()
    assert "sudo refuses ops" in caught.value.what
    assert word in caught.value.why
    assert fix in caught.value.fix


def test_a_wrong_password_is_tried_once_and_not_shown(sshd, transport, monkeypatch):
    """
    Whatever the command reads; then no host gets it any more, and each says why.
    """
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-7")
    with pytest.raises(CommandFailed) as caught:
        transport.run(["sudo", "-n", "cat"], timeout_s=90, stdin=b"one\ntwo\nthree\n")
    assert "incorrect password" in caught.value.why
    other = SshTransport(
        sshd.host(user="ops", sudo_password=True).model_copy(update={"name": "n2"})
    )
    for again in (transport, other):
        with pytest.raises(CommandFailed, match="the password for sudo is wrong") as later:
            again.run(["sudo", "-n", "true"], timeout_s=90)
    other.close()
    assert later.value.host == "n2"
    assert "n1 refused it" in later.value.why
    assert "wrong-7" not in f"{caught.value}{later.value}"
    assert sshd.sudo.attempts == 1


def test_hosts_at_once_try_a_wrong_password_once(sshd, monkeypatch):
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong-7")
    host = sshd.host(user="ops", sudo_password=True)
    transports = [SshTransport(host.model_copy(update={"name": f"n{n}"})) for n in range(1, 5)]

    def run(transport):
        with pytest.raises(CommandFailed):
            transport.run(["sudo", "-n", "true"], timeout_s=90)

    monkeypatch.setattr(sudo, "_VERDICT_S", 90.0)
    with ThreadPoolExecutor(len(transports)) as pool:
        list(pool.map(run, transports))
    for transport in transports:
        transport.close()
    assert sshd.sudo.attempts == 1


def test_a_host_that_refuses_what_another_took_is_alone():
    """
    It gets the password once; the others go on.
    """
    attempts = sudo.PasswordAttempts()
    with attempts.attempt("n1", b"x"):
        pass
    refusal = CommandFailed("n2: sudo refuses ops", why="x", fix="x", host="n2")
    with attempts.attempt("n2", b"x"):
        attempts.record(refusal, "sudo: 1 incorrect password attempt")
    with attempts.attempt("n3", b"x"), attempts.attempt("n1", b"x"):
        pass
    with pytest.raises(CommandFailed, match="n2: the password for sudo is wrong"):
        attempts.attempt("n2", b"x").__enter__()
    with attempts.attempt("n2", b""):  # what needs no password still runs there
        pass


def test_once_a_host_took_the_password_the_others_go_on_together(monkeypatch):
    """
    Also those that waited for it: a command may take minutes.
    """
    monkeypatch.setattr(sudo, "_VERDICT_S", 90.0)
    attempts, together, waiting = sudo.PasswordAttempts(), threading.Barrier(3), []
    wait = attempts._changed.wait
    attempts._changed.wait = lambda left_s: waiting.append(1) or wait(left_s)

    def work(host):
        with attempts.attempt(host, b"x"):
            return together.wait(60)

    with ThreadPoolExecutor(3) as pool:
        with attempts.attempt("n1", b"x"):
            others = [pool.submit(work, host) for host in ("n2", "n3", "n4")]
            while len(waiting) < 3:
                pass
        assert sorted(one.result() for one in others) == [0, 1, 2]


def test_a_host_that_does_not_answer_stops_no_other(monkeypatch):
    """
    Nor does one that is lost without a verdict.
    """
    monkeypatch.setattr(sudo, "_VERDICT_S", 0.01)
    attempts = sudo.PasswordAttempts()
    with attempts.attempt("n1", b"x"), attempts.attempt("n2", b"x"):
        pass
    monkeypatch.setattr(sudo, "_VERDICT_S", 90.0)
    attempts = sudo.PasswordAttempts()
    with pytest.raises(EOFError), attempts.attempt("n1", b"x"):
        raise EOFError
    with attempts.attempt("n2", b"x"):
        pass


@pytest.mark.parametrize("text", ["sudo: sorry, you must have a tty to run sudo",
                                  "Sorry, user ops may not run sudo on n1."])  # fmt: skip
def test_another_refusal_stops_its_host_alone(text, sshd):
    host = sshd.host(user="ops", sudo_password=True)
    assert sudo.sudo_refusal(host, ["sudo", "-n", "true"], 1, text) is not None
    with sudo.ATTEMPTS.attempt("n2", b"x"):
        pass


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
assert transport.run(["sudo", "-n", "cat"], timeout_s=90, stdin=b"in").stdout == "in"
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
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=400, check=False)
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
    monkeypatch.delenv(PASSWORD_VARIABLE)
    with_sudo_password(fleet)
    with_sudo_password(fleet)
    assert (asked, sudo_password(host.ssh)) == ([1], "typed")
    monkeypatch.setattr(sudo, "_kept", None)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(UsageError):
        with_sudo_password(fleet)


def test_the_variable_is_taken_out_of_the_environment(sshd):
    env = {PASSWORD_VARIABLE: PASSWORD, "HOME": "/root"}
    take_sudo_password(env)
    assert env == {"HOME": "/root"}
    assert sudo_password(sshd.host(user="ops", sudo_password=True).ssh, env) == PASSWORD


def test_a_password_of_two_lines_is_refused_before_a_host_is_asked():
    take_sudo_password({PASSWORD_VARIABLE: "a\nb"})
    with pytest.raises(UsageError, match=PASSWORD_VARIABLE):
        with_sudo_password(Fleet.model_construct(name="test", hosts=(), others=()))


def test_a_command_without_sudo_needs_no_password(sshd, monkeypatch):
    """
    Such as what `inv matrix --host` reads.
    """
    monkeypatch.delenv(PASSWORD_VARIABLE)
    transport = SessionTransport(sshd.host(user="ops", sudo_password=True), sudo=True)
    assert transport.run(["echo", "x"], timeout_s=90).stdout == "x\n"
    with pytest.raises(UsageError):
        transport.run(["sudo", "-n", "true"], timeout_s=90)
    transport.close()


def test_the_guard_is_needed(sshd):
    """
    Negative control: with the password always piped to sudo, a command would read it where the
    rules of the host ask for none.
    """
    sshd.sudo.rules("none")
    argv, before = under_sudo(["sudo", "-n", "cat"], "secret")
    script = """IFS= read -r p; { printf '%s\\n' "$p"; exec cat; } | sudo -S -p '' "$@\""""
    line = ["sh", "-c", script, *argv[3:]]
    done = subprocess.run(line, input=before, capture_output=True, check=True)
    assert done.stdout == b"secret\n"
