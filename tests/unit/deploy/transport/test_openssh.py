"""
The transports against a real sshd, set up as people have it.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.errors import HostKeyMismatch, InventoryError, TransportError
from deploy.inventory.host_document import host_document, host_of
from deploy.inventory.names import parse_jumps
from deploy.transport.client_config import with_client_config
from deploy.transport.conversation import SessionRefused, open_session
from deploy.transport.ssh import SshTransport, connect
from tests.unit.deploy.inventory.builders import make_fleet
from tests.unit.deploy.transport.openssh import OpensshServer, add_to_agent, make_key, ssh_agent

_ROOT = Path(__file__).parents[4]
_WORKER = """
from gevent import monkey
monkey.patch_all()
import json, sys
from pyinfra.api import Config, Inventory, State
from deploy.inventory.host_document import host_of
from deploy.provision.connector import BoundedConnector, input_of
inventory = Inventory((["n1"], {}))
connector = BoundedConnector(
    State(inventory, Config()), inventory.get_host("n1"), host_of(json.loads(sys.argv[1]))
)
connector.connect()
for number in range(20):
    line = "head -c 300000 >/dev/null; head -c 100000 /dev/zero"
    status, output, _ = connector.execute(line, input_of(bytes(500_000)), 20)
    assert (status, len(output)) == (0, 100_000)
connector.disconnect()
print("done")
"""


@pytest.fixture
def one_session(tmp_path):
    with OpensshServer(tmp_path / "sshd", config="MaxSessions 1\n") as server:
        yield server


@pytest.fixture
def transport(one_session):
    opened = SshTransport(one_session.host())
    yield opened
    opened.close()


def test_provisioning_needs_one_session(one_session):
    """
    sshd frees the session of a command after its exit status: the next one may come too early.
    """
    document = json.dumps(host_document(one_session.host()))
    argv = [sys.executable, "-c", _WORKER, document]
    env = os.environ | {"PYTHONPATH": str(_ROOT)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", done.stderr[-2000:]


def test_commands_at_once_get_a_connection_each(transport):
    """
    None waits for another one, and later commands use the same connections.
    """
    gate = threading.Barrier(3)
    outputs = []

    def run(number):
        gate.wait()
        outputs.append(transport.run(["sh", "-c", f"sleep 0.2; echo {number}"], timeout_s=20))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.stdout for done in outputs) == ["0\n", "1\n", "2\n"]
    assert max(done.took_s for done in outputs) < 10
    connections = len(transport._links)
    assert connections <= 3
    for _ in range(10):
        transport.run(["head", "-c", "100000", "/dev/zero"], timeout_s=20)
    assert len(transport._links) == connections


def test_a_second_session_is_refused(one_session):
    """
    Negative control: this sshd has room for one, and says so by an error of its own.
    """
    connection = connect(one_session.host())
    client = connection.client.get_transport()
    with open_session(client, 5), pytest.raises(SessionRefused, match="MaxSessions"):
        open_session(client, 5, is_alone=False)
    connection.close()


@pytest.fixture
def server(tmp_path):
    with OpensshServer(tmp_path / "sshd") as one:
        yield one


@pytest.fixture
def run(request):
    """
    Return a function that runs `true` on a host, and closes the connection.
    """

    def run_on(host, *argv):
        transport = SshTransport(host)
        request.addfinalizer(transport.close)
        return transport.run(list(argv) or ["true"], timeout_s=20).stdout

    return run_on


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """
    An SSH agent with nothing in it.
    """
    with ssh_agent(tmp_path / "agent") as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield path


@pytest.mark.parametrize(("kind", "others"), [("ed25519", 7), ("rsa", 0)])
def test_a_key_with_a_passphrase_comes_from_the_agent(server, run, agent, tmp_path, kind, others):
    """
    `ssh.key` may stay the file, or its public half; of many keys in the agent only it is offered.
    """
    key = make_key(tmp_path / "locked", passphrase="Horse-7", kind=kind)
    (server.folder / "authorized_keys").write_text((tmp_path / "locked.pub").read_text())
    with pytest.raises(TransportError) as caught:
        run(server.host(key=key))
    assert "has a passphrase" in caught.value.why
    assert f"ssh-add {key}" in caught.value.fix
    for number in range(others):  # more than sshd takes
        subprocess.run(["ssh-add", "-q", str(make_key(tmp_path / f"other{number}"))], check=True)
    add_to_agent(key, "Horse-7", tmp_path)
    run(server.host(key=key))
    run(server.host(key=tmp_path / "locked.pub"))


def test_a_host_behind_two_jump_hosts(tmp_path, run):
    """
    By ssh.jump; each of the three has its host key in the one file.
    """
    with (
        OpensshServer(tmp_path / "a") as a,
        OpensshServer(tmp_path / "b") as b,
        OpensshServer(tmp_path / "c") as c,
    ):
        known = tmp_path / "known"
        for one in (b, c):
            (one.folder / "authorized_keys").write_text((a.folder / "client.pub").read_text())
        known.write_text("".join(one.known_hosts.read_text() for one in (a, b, c)))
        jumps = parse_jumps(f"root@127.0.0.1:{a.port},root@127.0.0.1:{b.port}")
        host = c.host(key=a.key, known_hosts=known, jump=jumps)
        assert run(host, "sh", "-c", "echo ${SSH_CONNECTION##* }") == f"{c.port}\n"
        for one in (a, b):
            assert "Accepted publickey" in (one.folder / "log").read_text()
        transport = SshTransport(host)
        transport.connect()
        way = [transport._links[0].connection]
        while way[-1].gateway:
            way.append(way[-1].gateway)
        transport.close()
        assert [connection.is_connected for connection in way] == [False, False, False]
        # The second jump host is not the recorded one: nothing goes past it.
        known.write_text(a.known_hosts.read_text() + c.known_hosts.read_text())
        logins = (c.folder / "log").read_text().count("Accepted")
        with pytest.raises(HostKeyMismatch, match="jump host"):
            run(host)
        assert (c.folder / "log").read_text().count("Accepted") == logins


def test_an_ipv6_address(tmp_path, run):
    """
    In known_hosts it stands in brackets.
    """
    with OpensshServer(tmp_path / "sshd", address="::1") as server:
        run(server.host())


CONFIG = """\
Include {folder}/more
Host gpu-1
    HostName 127.0.0.1
    IdentityFile {key}
    IdentitiesOnly yes
Match host 127.0.0.1 user root
    UserKnownHostsFile {known}
"""
MORE = """\
Host gpu-1
    Port {port}
    User root
    ProxyJump jump
Host jump
    HostName 127.0.0.1
    User root
    Port {jump_port}
    IdentityFile {key}
    UserKnownHostsFile {known}
"""


@pytest.fixture
def configured(tmp_path, monkeypatch):
    """
    Return a function that writes ~/.ssh/config and loads a fleet with the host gpu-1.
    """
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".ssh").mkdir(parents=True)

    def load(text, ssh=None):
        (tmp_path / "home" / ".ssh" / "config").write_text(text)
        hosts = {"gpu-1": {"address": "gpu-1"}}
        fleet = make_fleet(tmp_path, {"hosts": hosts, "ssh": {"client_config": True} | (ssh or {})})
        return with_client_config(fleet).hosts[0]

    return load


def test_a_host_of_the_users_ssh_config(tmp_path, run, configured):
    """
    Host, Match, HostName, User, Port, IdentityFile, ProxyJump, UserKnownHostsFile and Include.
    """
    with OpensshServer(tmp_path / "a") as a, OpensshServer(tmp_path / "b") as b:
        (b.folder / "authorized_keys").write_text((a.folder / "client.pub").read_text())
        known = tmp_path / "known"
        known.write_text(a.known_hosts.read_text() + b.known_hosts.read_text())
        names = {"folder": tmp_path, "key": a.key, "known": known}
        (tmp_path / "more").write_text(MORE.format(port=b.port, jump_port=a.port, **names))
        host = configured(CONFIG.format(**names))
        assert (host.ssh.user, host.ssh.port, len(host.route)) == ("root", b.port, 2)
        assert run(host_of(json.loads(json.dumps(host_document(host)))), "echo", "here") == "here\n"
        assert "Accepted publickey" in (a.folder / "log").read_text()


def test_the_fleet_file_goes_before_the_users_ssh_config(configured):
    text = "Host *\n User eve\n Port 99\n ProxyJump none\n"
    assert configured(text).ssh.user == "eve"
    host = configured(text, {"user": "ops", "port": 22, "jump": "ops@bastion"})
    [jump, last] = host.route
    assert (host.ssh.user, last.user, last.port) == ("ops", "ops", 22)
    assert (jump.user, jump.address, jump.port) == ("ops", "bastion", 22)
    host = configured(text, {"client_config": False})
    assert (host.ssh.user, host.ssh.port, host.route) == ("root", 22, ())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("ProxyCommand touch x", "ProxyCommand"),
        ("Host a b\n  NoSuchKey 7", "ssh -G"),
        ("Host gpu-1\n ProxyJump gpu-2\nHost gpu-2\n ProxyJump gpu-1", "ProxyJump"),
        ("IdentityAgent /run/other", "IdentityAgent"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(configured, text, word):
    with pytest.raises(InventoryError) as caught:
        configured(text)
    assert word in str(caught.value)
    assert "gpu-1" in caught.value.what
