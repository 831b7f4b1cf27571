"""
The SSH transport against a server on this machine.
"""

import stat
import threading

import paramiko
import pytest

from deploy.errors import CommandFailed, HostKeyMismatch, TransportError
from deploy.transport import ssh
from deploy.transport.ssh import SshTransport


@pytest.fixture
def connect(sshd):
    """
    Return transports to the server, closed at the end.
    """
    opened = []

    def make(**ssh):
        opened.append(SshTransport(sshd.host(**ssh)))
        return opened[-1]

    yield make
    for transport in opened:
        transport.close()


def test_a_command_returns_its_streams_and_status(connect):
    """
    Standard input, both outputs and the exit status are those of the command.
    """
    completed = connect().run(
        ["sh", "-c", "cat; echo err >&2; exit 3"], timeout_s=20, stdin=b"in", check=False
    )
    assert (completed.returncode, completed.stdout, completed.stderr) == (3, "in", "err\n")


def test_arguments_reach_the_command_as_they_are(connect):
    """
    The shell of the host expands nothing.
    """
    arguments = ["a b", "$HOME", "*", "it's", ""]
    completed = connect().run(["printf", "[%s]", *arguments], timeout_s=20)
    assert completed.stdout == "".join(f"[{argument}]" for argument in arguments)


def test_one_connection_carries_all_commands(sshd, connect):
    """
    Commands after the first log in no more.
    """
    transport = connect()
    transport.connect()
    transport.run(["true"], timeout_s=20)
    transport.run(["true"], timeout_s=20)
    assert (sshd.logins, len(sshd.commands), transport.commands) == (1, 2, 2)


def test_a_failed_command_is_told_from_a_lost_host(connect):
    """
    CommandFailed has the exit status and the last lines; only a lost host is a TransportError.
    """
    with pytest.raises(CommandFailed) as caught:
        connect().run(["sh", "-c", "echo reason >&2; exit 7"], timeout_s=20)
    assert caught.value.why == 'exit status 7; n1 says: "reason"'
    assert not isinstance(caught.value, TransportError)


def test_a_silent_command_ends_at_its_deadline(sshd, connect):
    """
    The connection is given up, the next command connects again.
    """
    transport = connect()
    transport.run(["true"], timeout_s=60)  # the connection takes its own time
    with pytest.raises(TransportError) as caught:
        transport.run(["sleep", "600"], timeout_s=0.5)
    assert "no answer within" in caught.value.why
    assert transport.run(["echo", "again"], timeout_s=20).stdout == "again\n"
    assert sshd.logins == 2


def test_every_command_ends_on_the_host_too(sshd, connect):
    """
    `timeout` on the host bounds a command that nobody waits for any more.
    """
    connect().run(["true"], timeout_s=20)
    assert sshd.commands == ["timeout --kill-after=5 25 true"]


def test_a_connection_that_breaks_is_a_transport_error(sshd, connect, tmp_path):
    """
    A command whose connection is cut has no result, so none is invented.
    """
    transport, begun = connect(), tmp_path / "begun"
    errors = []

    def run():
        try:
            transport.run(["sh", "-c", f"touch {begun}; sleep 600"], timeout_s=300)
        except TransportError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not begun.exists():
        assert thread.is_alive()
    sshd.drop()
    thread.join(timeout=60)
    [error] = errors
    assert "the connection was lost" in error.why


def test_a_connection_closed_by_another_thread_is_a_transport_error(connect, monkeypatch):
    """
    Also when it is closed before the command that opened it is sent.
    """
    transport, open_connection = connect(), ssh.connect

    def closed_at_once(host):
        connection = open_connection(host)
        connection.close()
        return connection

    monkeypatch.setattr(ssh, "connect", closed_at_once)

    with pytest.raises(TransportError, match="n1: the connection was closed"):
        transport.run(["true"], timeout_s=20)


def test_a_command_may_end_without_reading_its_input(connect):
    """
    Its status is the answer, whatever was still to be sent.
    """
    completed = connect().run(
        ["sh", "-c", "exit 69"], timeout_s=20, stdin=b"x" * 2**23, check=False
    )
    assert completed.returncode == 69


def test_another_host_key_is_refused_before_anything_is_sent(sshd, connect):
    """
    A host with another key than the recorded one gets no login.
    """
    sshd.record(paramiko.ECDSAKey.generate())
    with pytest.raises(HostKeyMismatch, match="not the recorded one"):
        connect().run(["true"], timeout_s=20)
    assert (sshd.logins, sshd.commands) == (0, [])


def test_an_unknown_host_key_is_refused(sshd, connect):
    """
    A host without a recorded key gets no login either.
    """
    sshd.record(None)
    with pytest.raises(HostKeyMismatch, match="no host key is recorded"):
        connect().run(["true"], timeout_s=20)
    assert (sshd.logins, sshd.commands) == (0, [])


def test_a_refused_key_names_the_user(sshd, connect, tmp_path):
    """
    A key that the host does not accept is a TransportError with the login that was tried.
    """
    other = tmp_path / "other"
    paramiko.ECDSAKey.generate().write_private_key_file(str(other))
    with pytest.raises(TransportError) as caught:
        connect(key=other).run(["true"], timeout_s=20)
    assert f"root@127.0.0.1:{sshd.port}" in caught.value.why
    assert sshd.commands == []


def test_a_missing_key_file_is_named(connect, tmp_path):
    """
    A key file that does not exist is reported before any connection.
    """
    with pytest.raises(TransportError) as caught:
        connect(key=tmp_path / "none").run(["true"], timeout_s=20)
    assert str(tmp_path / "none") in caught.value.why


def test_a_host_that_does_not_listen_is_a_transport_error(connect):
    """
    A refused connection names the address.
    """
    with pytest.raises(TransportError) as caught:
        connect(port=1).run(["true"], timeout_s=20)
    assert "127.0.0.1:1" in caught.value.why


def test_a_file_arrives_with_its_mode(connect, tmp_path):
    """
    Content and mode are right, and no partial file is left.
    """
    local, remote = tmp_path / "local", tmp_path / "remote" / "file"
    local.write_bytes(bytes(range(256)) * 4096)
    remote.parent.mkdir()
    connect().put(local, str(remote), timeout_s=20, mode=0o640)
    assert remote.read_bytes() == local.read_bytes()
    assert stat.S_IMODE(remote.stat().st_mode) == 0o640
    assert [path.name for path in remote.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_is_a_failed_command(connect, tmp_path):
    """
    The reason of the host is in the error, and the old file stays.
    """
    local = tmp_path / "local"
    local.write_bytes(b"new")
    with pytest.raises(CommandFailed) as caught:
        connect().put(local, str(tmp_path / "none" / "file"), timeout_s=20)
    assert "none/file" in caught.value.why


def test_a_silent_command_ends_no_other_one(sshd, connect, tmp_path):
    """
    Only its own channel closes at its deadline while another command uses the connection: a slow
    renewal of a lease does not end the start of a slot.  Alone, it closes the connection (above).
    """
    transport = connect()
    transport.connect()
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    results = []
    script = f"touch {begun}; while [ ! -e {gate} ]; do sleep 0.05; done; echo done"
    other = threading.Thread(
        target=lambda: results.append(transport.run(["sh", "-c", script], timeout_s=30).stdout)
    )
    other.start()
    while not begun.exists():
        pass

    with pytest.raises(TransportError, match="no answer"):
        transport.run(["sleep", "600"], timeout_s=0.5)

    gate.touch()
    other.join(60)
    assert results == ["done\n"]
    assert sshd.logins == 1
