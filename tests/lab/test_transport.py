"""
The transport against a real sshd: deadlines, host keys, and what a cut or a freeze looks like.
"""

import time
from pathlib import Path

import pytest

from deploy.errors import CommandFailed, HostKeyMismatch, TransportError
from deploy.lab import lab
from deploy.transport.ssh import SshTransport
from deploy.wiring import fleet


@pytest.fixture
def host(lab_hosts):
    return fleet("lab").host("n4")


@pytest.fixture
def transport(host):
    made = SshTransport(host)
    yield made
    made.close()


def changed(host, **ssh):
    return host.model_copy(update={"ssh": host.ssh.model_copy(update=ssh)})


def test_a_command_answers_with_its_streams_and_status(transport):
    done = transport.run(["sh", "-c", "cat; echo err >&2; exit 3"], timeout_s=10, stdin=b"in",
                         check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (3, "in", "err\n")


def test_a_command_that_says_no_is_told_from_no_answer(transport):
    """
    Only the first may be repeated blindly, so they are two errors.
    """
    with pytest.raises(CommandFailed, match="n4"):
        transport.run(["false"], timeout_s=10)
    with pytest.raises(TransportError, match="no answer"):
        transport.run(["sleep", "60"], timeout_s=1)
    assert transport.run(["true"], timeout_s=10).returncode == 0, "it connects again"


def test_a_command_does_not_outlive_its_deadline_on_the_host(transport, eventually):
    """
    What we stopped waiting for is ended over there too.
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
    done = transport.run(["sh", "-c", script], timeout_s=60)
    assert (len(done.stdout), len(done.stderr)) == (5_000_000, 5_000_000)


def test_a_file_arrives_whole_or_not_at_all(transport, tmp_path):
    """
    The content lands under its name only when all of it is there.
    """
    local = tmp_path / "file"
    local.write_bytes(bytes(range(256)) * 4096)
    transport.put(local, "/root/put.bin", timeout_s=60, mode=0o640)

    seen = transport.run(["sh", "-c", "stat -c %a /root/put.bin; cksum < /root/put.bin; "
                          "ls /root/put.bin.part 2>&1"], timeout_s=10, check=False)  # fmt: skip
    mode, sums, part = seen.stdout.splitlines()
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
    with pytest.raises(HostKeyMismatch, match="no host key"):
        SshTransport(changed(host, known_hosts=Path("/dev/null"))).run(["true"], timeout_s=10)


def test_a_wrong_key_and_an_absent_host_say_so(host, tmp_path):
    import subprocess

    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    with pytest.raises(TransportError, match="refuses the key"):
        SshTransport(changed(host, key=key)).run(["true"], timeout_s=10)
    away = changed(host, connect_timeout=2.0).model_copy(update={"address": "10.78.0.250"})
    with pytest.raises(TransportError, match="cannot connect"):
        SshTransport(away).run(["true"], timeout_s=10)


@pytest.mark.parametrize(("breaks", "mends"), [(lab.freeze, lab.thaw), (lab.cut, lab.heal)])
def test_a_host_that_stops_answering_is_given_up_at_the_deadline(host, transport, breaks, mends):
    """
    Frozen or cut, in the middle of a connection: no call takes longer than it was given.
    """
    transport.run(["true"], timeout_s=10)
    breaks("n4")
    try:
        began_s = time.monotonic()
        with pytest.raises(TransportError):
            transport.run(["true"], timeout_s=3)
        with pytest.raises(TransportError):
            transport.run(["true"], timeout_s=3)  # and connecting anew is bounded too
        assert time.monotonic() - began_s < 3 + 3 + host.ssh.connect_timeout + 5
    finally:
        mends("n4")
    assert transport.run(["true"], timeout_s=30).returncode == 0
