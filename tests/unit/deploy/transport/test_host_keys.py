"""
Host keys and private keys of connections, against a server on this machine.
"""

import os

import paramiko
import pytest

from deploy.errors import HostKeyMismatch, TransportError
from deploy.transport import ssh
from deploy.transport.ssh import SshTransport


@pytest.fixture
def connect(sshd):
    opened = []

    def make(**settings):
        opened.append(SshTransport(sshd.host(**settings)))
        opened[-1].connect()

    yield make
    for transport in opened:
        transport.close()


def entry(sshd, key, marker=""):
    return f"{marker} [127.0.0.1]:{sshd.port} {key.get_name()} {key.get_base64()}\n".lstrip()


def test_a_second_key_of_the_same_type_is_right(sshd, connect):
    """
    During a rotation both keys are recorded, in any order.
    """
    other = paramiko.ECDSAKey.generate()
    for keys in ((other, sshd.host_key), (sshd.host_key, other)):
        sshd.known_hosts.write_text("".join(entry(sshd, key) for key in keys))
        connect()


def test_lines_of_other_tools_do_not_matter(sshd, connect):
    """
    Certificate authorities, comments and garbage beside the entry.
    """
    authority = entry(sshd, paramiko.ECDSAKey.generate(), "@cert-authority")
    sshd.known_hosts.write_bytes(
        authority.encode() + b"\xff\x00garbage\n#\n" + entry(sshd, sshd.host_key).encode()
    )
    connect()


def refusal(connect):
    with pytest.raises(HostKeyMismatch) as caught:
        connect()
    return caught.value


def test_a_revoked_key_is_refused(sshd, connect):
    """
    Nothing is sent; the error says what to do about the key.
    """
    text = entry(sshd, sshd.host_key) + entry(sshd, sshd.host_key, "@revoked")
    sshd.known_hosts.write_text(text)
    error = refusal(connect)
    assert "revoked" in error.what
    assert sshd.logins == 0


def test_another_key_is_refused_with_both_fingerprints(sshd, connect):
    """
    As ssh-keygen -l prints them.
    """
    other = paramiko.ECDSAKey.generate()
    sshd.known_hosts.write_text(entry(sshd, other))
    error = refusal(connect)
    assert "not the recorded one" in error.what
    assert other.fingerprint in error.why
    assert sshd.host_key.fingerprint in error.why
    assert sshd.logins == 0


def test_a_server_without_a_key_of_a_recorded_type_is_refused(sshd, connect):
    """
    It is asked for a key of a recorded type only, so that it cannot choose another one.
    """
    sshd.known_hosts.write_text(entry(sshd, paramiko.RSAKey.generate(1024)))
    assert "not the recorded one" in refusal(connect).what
    assert sshd.logins == 0


def test_a_server_with_several_keys_is_asked_for_a_recorded_one(sshd, connect):
    """
    Only its RSA key is recorded, and it would rather show the other one.
    """
    sshd.more_host_keys.append(paramiko.RSAKey.generate(2048))
    sshd.known_hosts.write_text(entry(sshd, sshd.more_host_keys[0]))
    connect()


def test_without_the_check_any_key_would_do(sshd, connect, monkeypatch):
    """
    Negative control: with the policy switched off the same server gets a login.
    """
    sshd.known_hosts.write_text(entry(sshd, paramiko.ECDSAKey.generate()))
    monkeypatch.setattr(ssh.RecordedKeys, "missing_host_key", lambda *_: None)
    connect()
    assert sshd.logins == 1


def test_the_agent_is_never_forwarded(sshd, connect, monkeypatch, tmp_path):
    """
    A host that could use the operator's agent could log in to every other host.
    """
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    asked = agent_requests(monkeypatch)
    transport = SshTransport(sshd.host())
    transport.run(["true"], timeout_s=20)
    transport.close()
    assert asked == []


def test_a_forwarded_agent_would_be_noticed(sshd, monkeypatch, tmp_path):
    """
    Negative control: a connection that forwards the agent is seen by the server.
    """
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    asked = agent_requests(monkeypatch)
    connection = ssh.connect(sshd.host())
    channel = connection.client.get_transport().open_session()
    channel.request_forward_agent(lambda channel: None)
    channel.exec_command("true")
    channel.recv_exit_status()
    connection.close()
    assert asked


def agent_requests(monkeypatch):
    asked = []
    monkeypatch.setattr(
        paramiko.ServerInterface,
        "check_channel_forward_agent_request",
        lambda self, channel: bool(asked.append(channel)),
    )
    return asked


def wrong_keys(folder):
    """
    Return a path of each kind of file that is no usable private key, with a word of the error.
    """
    key = paramiko.ECDSAKey.generate()
    public = folder / "id_test.pub"
    public.write_text(f"{key.get_name()} {key.get_base64()} ann@laptop\n")
    locked = folder / "locked"
    key.write_private_key_file(str(locked), password="secret")
    cut = folder / "cut"
    key.write_private_key_file(str(cut))
    cut.write_text(cut.read_text()[:80])
    empty, binary = folder / "empty", folder / "binary"
    empty.touch()
    binary.write_bytes(bytes(range(256)) * 10)
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    return {
        public: "public key",
        locked: "passphrase",
        cut: "cannot be read as a private key",
        empty: "not a private key",
        binary: "not a private key",
        folder: "not a regular file",
        pipe: "not a regular file",
        folder / "none": "does not exist",
    }


def test_a_file_that_is_no_private_key_is_named_before_anything_connects(sshd, connect, tmp_path):
    """
    The error names the file and its remedy, and not the host: it is up.
    """
    for path, word in wrong_keys(tmp_path).items():
        with pytest.raises(TransportError) as caught:
            connect(key=path)
        assert word in caught.value.why
        assert str(path) in caught.value.why
        assert "ping" not in caught.value.fix
    assert sshd._transports == []


def test_a_public_key_says_which_file_is_meant(sshd, connect, tmp_path):
    public = tmp_path / "id_test.pub"
    public.write_text("ssh-ed25519 AAAA ann@laptop\n")
    with pytest.raises(TransportError) as caught:
        connect(key=public)
    assert str(tmp_path / "id_test") in caught.value.fix
