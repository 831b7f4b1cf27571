"""
Certificates of hosts, made by ssh-keygen: which of them prove that a server is the host.
"""

import base64
import itertools
import shutil
import subprocess
import time

import paramiko
import pytest

from deploy.errors import HostKeyMismatch
from deploy.transport.host_certificates import InvalidCertificate, check_host, read_certificate
from deploy.transport.host_keys import first_unknown
from deploy.transport.ssh import SshTransport
from tests.unit.deploy.transport.openssh import OpensshServer, make_certificate, make_key

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
KINDS = ("ed25519", "ecdsa", "rsa")


def public(key):
    kind, text = key.with_name(f"{key.name}.pub").read_text().split()[:2]
    return kind, text


@pytest.fixture
def signed(tmp_path):
    """
    Return a function that makes a key and a certificate of it, and returns the certificate's bytes.
    """
    counter = itertools.count()

    def make(*options, kind="ed25519", authority_kind="ed25519"):
        number = next(counter)
        key = make_key(tmp_path / f"key{number}", kind=kind)
        authority = make_key(tmp_path / f"authority{number}", kind=authority_kind)
        path = make_certificate(key, authority, *options)
        return base64.b64decode(path.read_text().split()[1])

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("authority_kind", KINDS)
def test_a_certificate_is_read_as_ssh_keygen_wrote_it(signed, tmp_path, kind, authority_kind):
    blob = signed("-n", "n1,*.example", "-V", "+1d", kind=kind, authority_kind=authority_kind)
    certificate = read_certificate(blob)
    assert base64.b64encode(certificate.key).decode() == public(tmp_path / "key0")[1]
    assert base64.b64encode(certificate.authority).decode() == public(tmp_path / "authority0")[1]
    assert (certificate.key_id, certificate.principals) == ("test host", ("n1", "*.example"))
    assert 86_000 < certificate.valid_to_s - time.time() <= 86_400
    for name in ("n1", "N1", "a.example"):
        check_host(certificate, name)
    for name in ("n2", "example", "n1.other"):
        with pytest.raises(InvalidCertificate, match=f"not for {name}"):
            check_host(certificate, name)


def test_a_certificate_has_its_time(signed):
    certificate = read_certificate(signed("-V", "20260101000000Z:20260201000000Z"))
    check_host(certificate, "n1", now_s=certificate.valid_from_s)
    with pytest.raises(InvalidCertificate, match="not valid yet"):
        check_host(certificate, "n1", now_s=certificate.valid_from_s - 1)
    with pytest.raises(InvalidCertificate, match="expired on 2026-02-01"):
        check_host(certificate, "n1", now_s=certificate.valid_to_s)
    check_host(read_certificate(signed()), "any-host")  # without names and without an end


def test_every_changed_byte_is_noticed(signed):
    """
    Each byte, and each length.
    """
    for kind in KINDS:
        blob = signed("-n", "n1", kind=kind)
        read_certificate(blob)
        others = [blob[:place] for place in range(len(blob))]
        others += [blob + b"x", b"", bytes(400), b"\xff" * 400]
        for place in range(len(blob)):
            others.append(blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :])
        for other in others:
            with pytest.raises(InvalidCertificate):
                read_certificate(other)


def test_only_certificates_of_hosts_count(signed, tmp_path):
    """
    Not those of users, nor any with a critical option, nor a signature by SHA-1.
    """
    with pytest.raises(InvalidCertificate, match="critical option"):
        read_certificate(signed("-O", "critical:only-at-noon=1"))
    with pytest.raises(InvalidCertificate, match="algorithm of its signature"):
        read_certificate(signed("-t", "ssh-rsa", authority_kind="rsa"))
    key, authority = tmp_path / "key0", tmp_path / "authority0"
    argv = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-n", "n1", f"{key}.pub"]
    subprocess.run(argv, check=True)
    blob = base64.b64decode((tmp_path / "key0-cert.pub").read_text().split()[1])
    with pytest.raises(InvalidCertificate, match="of a user"):
        read_certificate(blob)


class Certified:
    """
    A server with a certificate for 127.0.0.1, and the authority of it.
    """

    def __init__(self, folder, *options, kind="ed25519"):
        self.authority = make_key(folder / "authority", kind=kind)
        certificate = f"HostCertificate {folder}/sshd/host_key-cert.pub\n"
        self.server = OpensshServer(folder / "sshd", config=certificate)
        make_certificate(self.server.folder / "host_key", self.authority, *options)

    def record(self, *lines):
        self.server.known_hosts.write_text("".join(f"{line}\n" for line in lines))

    def line(self, hosts="*", marker="@cert-authority", key=None):
        return f"{marker} {hosts} {' '.join(public(key or self.authority))}".lstrip()

    def connect(self):
        transport = SshTransport(self.server.host())
        try:
            return transport.run(["echo", "in"], timeout_s=20).stdout
        finally:
            transport.close()

    def refusal(self):
        with pytest.raises(HostKeyMismatch) as caught:
            self.connect()
        return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_is_known_by_its_certificate(tmp_path, kind):
    """
    With nothing recorded but the authority; inv trust then has nothing to record.
    """
    certified = Certified(tmp_path, "-n", "127.0.0.1", "-V", "+1d", kind=kind)
    with certified.server:
        plain = " ".join((certified.server.name, certified.server.host_key))
        certified.record(certified.line("127.0.0.*"))
        assert certified.connect() == "in\n"
        assert first_unknown(certified.server.host()) is None
        # Authorities of other hosts, and other authorities, do not vouch for it.
        other = make_key(tmp_path / "other")
        for lines in ([certified.line("n1")], [certified.line(key=other)]):
            certified.record(*lines)
            assert "no host key is recorded" in certified.refusal().what
            assert len(first_unknown(certified.server.host()).keys) == 1
            certified.record(*lines, plain)
            assert certified.connect() == "in\n"
        # What is revoked is refused: the authority, and the key that it vouches for.
        for key in (certified.authority, certified.server.folder / "host_key"):
            certified.record(certified.line(), certified.line(marker="@revoked", key=key))
            assert "revoked" in certified.refusal().what


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-n", "127.0.0.2"), "it is for 127.0.0.2, not for 127.0.0.1"),
        (("-n", "127.0.0.1", "-V", "20200101000000Z:20200201000000Z"), "expired on 2020-02-01"),
        (("-O", "critical:x=1"), "critical option"),
    ],
)
def test_a_certificate_that_proves_nothing_says_why(tmp_path, options, why):
    """
    The plain key counts then, as for ssh(1).
    """
    certified = Certified(tmp_path, *options)
    with certified.server:
        certified.record(certified.line())
        refusal = certified.refusal()
        assert why in refusal.why
        assert "HostCertificate" in refusal.fix
        certified.record(certified.line(), f"{certified.server.name} {certified.server.host_key}")
        assert certified.connect() == "in\n"


def test_a_host_without_a_certificate_says_so(tmp_path):
    authority = make_key(tmp_path / "authority")
    with OpensshServer(tmp_path / "sshd") as server:
        server.known_hosts.write_text(f"@cert-authority * {' '.join(public(authority))}\n")
        transport = SshTransport(server.host())
        with pytest.raises(HostKeyMismatch, match="shows no certificate"):
            transport.run(["true"], timeout_s=20)
        transport.close()


def test_the_key_of_the_authority_is_no_key_of_a_host(tmp_path):
    """
    A server that shows it as its plain key proves nothing.
    """
    with OpensshServer(tmp_path / "sshd") as server:
        server.known_hosts.write_text(f"@cert-authority * {server.host_key}\n")
        transport = SshTransport(server.host())
        with pytest.raises(HostKeyMismatch, match="no host key is recorded"):
            transport.run(["true"], timeout_s=20)
        transport.close()


def test_paramiko_alone_asks_for_plain_keys(tmp_path):
    """
    Negative control: without the order of algorithms no certificate would be shown.
    """
    certified = Certified(tmp_path, "-n", "127.0.0.1")
    with certified.server as server:
        transport = paramiko.Transport((server.address, server.port))
        transport.start_client(timeout=60)
        shown = transport.get_remote_server_key()
        transport.close()
    assert shown.public_blob is None
