"""
The SSH transport against a real sshd: deadlines, host keys, and hosts that are cut off or frozen.
"""

import time

import pytest

from deploy.errors import CommandFailed, HostKeyMismatch, TransportError
from deploy.lab import lab
from deploy.transport.ssh import SshTransport
from deploy.wiring.checkout import fleet


@pytest.fixture
def host(lab_hosts):
    return fleet("lab").host("n4")


@pytest.fixture
def transport(host):
    ssh_transport = SshTransport(host)
    yield ssh_transport
    ssh_transport.close()


def changed(host, **ssh):
    return host.model_copy(update={"ssh": host.ssh.model_copy(update=ssh)})


def test_a_command_answers_with_its_streams_and_status(transport):
    result = transport.run(["sh", "-c", "cat; echo err >&2; exit 3"], timeout_s=10, stdin=b"in",
                           check=False)  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (3, "in", "err\n")


def test_a_failed_command_and_a_missing_answer_are_different_errors(transport):
    """
    Without an answer it is unknown whether the command ran, so it must not be repeated blindly.
    """
    with pytest.raises(CommandFailed, match="n4"):
        transport.run(["false"], timeout_s=10)
    with pytest.raises(TransportError, match="no answer"):
        transport.run(["sleep", "60"], timeout_s=1)
    assert transport.run(["true"], timeout_s=10).returncode == 0, "it connects again"


def test_a_command_does_not_outlive_its_deadline_on_the_host(transport, eventually):
    """
    After the transport has given up, the host ends the command too.
    """
    with pytest.raises(TransportError):
        transport.run(["sleep", "4242"], timeout_s=1)
    eventually(
        lambda: transport.run(["pgrep", "-f", "[s]leep 4242"], timeout_s=10, check=False).stdout,
        "",
        timeout_s=20,
    )


def test_a_large_output_on_both_streams_does_not_stall(transport):
    script = "head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2"
    result = transport.run(["sh", "-c", script], timeout_s=60, output_max=6_000_000)
    assert (len(result.stdout), len(result.stderr)) == (5_000_000, 5_000_000)


def test_a_file_arrives_completely_or_not_at_all(transport, tmp_path):
    """
    The file gets its final name when it is complete.
    """
    local = tmp_path / "file"
    local.write_bytes(bytes(range(256)) * 4096)
    transport.put(local, "/root/put.bin", timeout_s=60, mode=0o640)

    script = "stat -c %a /root/put.bin; cksum < /root/put.bin; ls /root/put.bin.part 2>&1"
    result = transport.run(["sh", "-c", script], timeout_s=10, check=False)
    mode, sums, part = result.stdout.splitlines()
    assert mode == "640"
    assert sums.split()[1] == str(256 * 4096)
    assert "No such file" in part
    with pytest.raises(CommandFailed, match="nowhere"):
        transport.put(local, "/nowhere/put.bin", timeout_s=60)


def test_a_wrong_host_key_is_refused_before_anything_is_sent(host, tmp_path):
    """
    A recorded key that differs, and no recorded key at all, are both a mismatch.
    """
    other = tmp_path / "known_hosts"
    line = next(
        text for text in host.ssh.known_hosts.read_text().splitlines()
        if not text.startswith(host.address)
    )  # fmt: skip
    other.write_text(f"{host.address} {line.split(' ', 1)[1]}\n")
    with pytest.raises(HostKeyMismatch, match="not the recorded one"):
        SshTransport(changed(host, known_hosts=other)).run(["true"], timeout_s=10)
    other.write_text("")
    with pytest.raises(HostKeyMismatch, match="no host key"):
        SshTransport(changed(host, known_hosts=other)).run(["true"], timeout_s=10)


def test_a_refused_key_and_an_absent_host_have_their_own_messages(host, tmp_path):
    import subprocess

    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with pytest.raises(TransportError, match="refuses the key"):
        SshTransport(changed(host, key=key)).run(["true"], timeout_s=10)
    away = changed(host, connect_timeout=2.0).model_copy(update={"address": "10.78.0.250"})
    with pytest.raises(TransportError, match="cannot connect"):
        SshTransport(away).run(["true"], timeout_s=10)


@pytest.mark.parametrize(("fault", "repair"), [(lab.freeze, lab.thaw), (lab.cut, lab.heal)])
def test_a_host_that_stops_answering_is_given_up_at_the_deadline(host, transport, fault, repair):
    """
    Frozen or cut off during a connection: no call exceeds its deadline.
    """
    transport.run(["true"], timeout_s=10)
    fault("n4")
    try:
        began_s = time.monotonic()
        with pytest.raises(TransportError):
            transport.run(["true"], timeout_s=3)
        with pytest.raises(TransportError):
            transport.run(["true"], timeout_s=3)  # a new connection has a deadline too
        assert time.monotonic() - began_s < 3 + 3 + host.ssh.connect_timeout + 5
    finally:
        repair("n4")
    assert transport.run(["true"], timeout_s=30).returncode == 0
