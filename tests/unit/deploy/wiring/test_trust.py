"""
Host keys are recorded once they were confirmed, and never replaced.
"""

import subprocess

import paramiko
import pytest

from deploy.cli.arguments import fingerprints
from deploy.errors import HostKeyMismatch, TransportError, UsageError
from deploy.inventory.names import parse_jumps
from deploy.inventory.schema import Fleet
from deploy.transport import host_keys
from deploy.transport.known_hosts import hashed_name
from deploy.transport.ssh import SshTransport
from deploy.wiring.trust import trust
from tests.unit.deploy.transport.loopback import LoopbackSshd
from tests.unit.deploy.transport.openssh import OpensshServer


@pytest.fixture
def sshd(tmp_path):
    with LoopbackSshd(tmp_path) as server:
        yield server


def fleet_of(*hosts):
    return Fleet.model_construct(name="test", hosts=hosts, others=())


def record(*hosts, expected=(), answer=None):
    asked = []

    def ask(shown):
        asked.extend(shown)
        if answer is not None:
            raise answer

    return trust(fleet_of(*hosts), fingerprints=expected, ask=ask), asked


def found_by_openssh(path, name):
    argv = ["ssh-keygen", "-l", "-F", name, "-f", str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def test_all_keys_of_a_server_are_shown_and_recorded(sshd):
    """
    Then a connection works, ssh-keygen finds them, and a second run has nothing to ask.
    """
    sshd.record(None)
    sshd.more_host_keys.append(paramiko.RSAKey.generate(2048))
    report, [shown] = record(sshd.host(connect_timeout=30.0))
    keys = [sshd.host_key, *sshd.more_host_keys]
    assert set(shown.fingerprints) == {key.fingerprint for key in keys}
    assert report.error is None
    assert sshd.logins == 0
    output = found_by_openssh(sshd.known_hosts, f"[127.0.0.1]:{sshd.port}")
    assert all(key.fingerprint in output for key in keys)
    transport = SshTransport(sshd.host())
    transport.connect()
    transport.close()
    text = sshd.known_hosts.read_bytes()
    report, asked = record(sshd.host())
    assert (report.known, report.recorded, asked) == (("n1",), (), [])
    assert sshd.known_hosts.read_bytes() == text


def test_nothing_is_recorded_without_a_yes(sshd):
    sshd.known_hosts.unlink()
    with pytest.raises(UsageError):
        record(sshd.host(), answer=UsageError("not confirmed", why="no", fix="none"))
    assert not sshd.known_hosts.exists()


def test_a_changed_key_is_never_replaced(sshd):
    """
    The file stays as it is; the error has both fingerprints and the command for a new host.
    """
    other = paramiko.ECDSAKey.generate()
    sshd.record(other)
    text = sshd.known_hosts.read_bytes()
    report, asked = record(sshd.host())
    assert isinstance(report.error, HostKeyMismatch)
    assert other.fingerprint in report.error.why
    assert sshd.host_key.fingerprint in report.error.why
    assert "ssh-keygen -R" in report.error.fix
    assert (asked, sshd.known_hosts.read_bytes()) == ([], text)


def test_a_revoked_key_is_not_recorded(sshd):
    text = f"@revoked * {sshd.host_key.get_name()} {sshd.host_key.get_base64()}\n"
    sshd.known_hosts.write_text(text)
    report, asked = record(sshd.host())
    assert "revoked" in report.error.what
    assert (asked, sshd.known_hosts.read_text()) == ([], text)


def test_only_keys_with_an_expected_fingerprint_are_recorded(sshd):
    """
    Of a CI run; a host without such a key is named, and the others are recorded.
    """
    sshd.record(None)
    sshd.more_host_keys.append(paramiko.RSAKey.generate(2048))
    report, _ = record(sshd.host(), expected=("SHA256:" + "A" * 43,))
    assert "no key with one of the fingerprints" in report.error.what
    assert sshd.known_hosts.read_text() == ""
    report, [shown] = record(sshd.host(), expected=(sshd.host_key.fingerprint,))
    assert shown.fingerprints == (sshd.host_key.fingerprint,)
    assert sshd.known_hosts.read_text().count("\n") == 1


@pytest.mark.parametrize(("last", "is_hashed"), [("plain", False), ("hashed", True)])
def test_the_file_keeps_its_form_and_its_lines(sshd, tmp_path, last, is_hashed):
    """
    Hashed names stay hashed; garbage, a last line without an end and the mode stay too.
    """
    key = paramiko.ECDSAKey.generate()
    name = hashed_name("other") if is_hashed else "other"
    before = f"\x00\xff garbage\n{name} {key.get_name()} {key.get_base64()}".encode("latin-1")
    real = tmp_path / "real"
    real.write_bytes(before)
    real.chmod(0o640)
    sshd.known_hosts.unlink()
    sshd.known_hosts.symlink_to(real)
    report, _ = record(sshd.host())
    assert report.error is None
    assert sshd.known_hosts.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    added = real.read_bytes().removeprefix(before + b"\n")
    assert added.startswith(b"|1|") == is_hashed
    assert found_by_openssh(real, f"[127.0.0.1]:{sshd.port}") != ""


def test_a_failure_leaves_the_old_file(sshd, monkeypatch):
    """
    A full disk: nothing is lost, and no draft is left.
    """
    sshd.known_hosts.write_text("old line\n")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host_keys.os, "fsync", full)
    with pytest.raises(UsageError, match="cannot be recorded"):
        record(sshd.host())
    assert sshd.known_hosts.read_text() == "old line\n"
    assert not [path for path in sshd.folder.iterdir() if path.name.startswith(".")]


def test_a_host_that_does_not_answer_keeps_no_other(sshd):
    sshd.record(None)
    report, _ = record(sshd.host("n1"), sshd.host("n2", port=1))
    assert [one.host for one in report.recorded] == ["n1"]
    assert list(report.failed) == ["n2"]
    assert isinstance(report.error, TransportError)


def test_jump_hosts_come_first(tmp_path):
    """
    The server behind a jump host is asked once the jump host's key is recorded.
    """
    with OpensshServer(tmp_path / "a") as a, OpensshServer(tmp_path / "b") as b:
        (b.folder / "authorized_keys").write_text((a.folder / "client.pub").read_text())
        known = tmp_path / "known"
        jumps = parse_jumps(f"root@127.0.0.1:{a.port}")
        host = b.host(key=a.key, known_hosts=known, jump=jumps)
        report, asked = record(host)
        assert report.error is None
        assert [one.name for one in asked] == [a.name, b.name]
        assert known.stat().st_mode & 0o777 == 0o600
        transport = SshTransport(host)
        assert transport.run(["echo", "x"], timeout_s=20).stdout == "x\n"
        transport.close()


def test_yes_needs_fingerprints():
    """
    Otherwise CI would record whatever answers.
    """
    one = "SHA256:" + "a" * 43
    assert fingerprints(f"{one}, {one}", yes=True) == {one}
    assert fingerprints("", yes=False) == frozenset()
    for text, yes in [("", True), ("SHA256:a", True), ("MD5:aa:bb", False)]:
        with pytest.raises(UsageError):
            fingerprints(text, yes=yes)
