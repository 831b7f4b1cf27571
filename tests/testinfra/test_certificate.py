import re
import shlex
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from deploy.host import layout

SOON = timedelta(days=14)
# With Python, which every host has: one certificate in PEM.
SHOWN = "import ssl, sys; print(ssl.get_server_certificate(('127.0.0.1', int(sys.argv[1]))))"
OLD = (
    "import socket, ssl, sys; c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); "
    "c.check_hostname = False; c.verify_mode = ssl.CERT_NONE; c.set_ciphers('ALL:@SECLEVEL=0'); "
    "v = getattr(ssl.TLSVersion, sys.argv[2]); c.minimum_version = c.maximum_version = v; "
    "c.wrap_socket(socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5))"
)


@pytest.fixture
def port(expected):
    if not expected["tls"]:
        pytest.skip("the public port is plain HTTP")
    return expected["port"]


@pytest.fixture
def shown(root, port):
    text = root.check_output(f"python3 -W ignore -c {shlex.quote(SHOWN)} {port}")
    return x509.load_pem_x509_certificate(text.encode())


def test_the_certificate_lasts(shown):
    """
    The certificate of the public port is valid for 14 days or more.
    """
    now = datetime.now(UTC)
    assert shown.not_valid_before_utc <= now
    assert shown.not_valid_after_utc - now >= SOON, "inv certs.renew"


def test_it_is_the_one_on_the_disk(root, shown):
    """
    A restart of HAProxy serves the same certificate.
    """
    # Only the first certificate leaves the host, never the key.
    text = root.check_output(f"sed '/END CERTIFICATE/q' {layout.CERTIFICATE}")
    assert re.fullmatch(r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----\s*", text)
    assert x509.load_pem_x509_certificate(text.encode()) == shown


def test_its_key_is_for_root_alone(root, port):
    """
    File and directory; nobody else reads it.
    """
    shown = root.check_output(f"stat -c '%U:%G %a' {layout.CERTIFICATES} {layout.CERTIFICATE}")
    assert shown.splitlines() == ["root:root 700", "root:root 600"]
    for user in (layout.HAPROXY_USER, *(layout.slot_user(slot) for slot in layout.SLOTS)):
        assert root.run(f"runuser -u {user} -- cat {layout.CERTIFICATE}").rc != 0, user


def test_no_certificate_is_left_where_the_port_is_plain(root, expected):
    """
    A fleet without TLS leaves no private key on its hosts.
    """
    if expected["tls"]:
        pytest.skip("the public port has TLS")
    assert not root.file(layout.CERTIFICATES).exists


def test_old_versions_of_tls_are_refused(root, port):
    """
    TLS 1.1 is refused, and TLS 1.2 is not.
    """
    line = f"python3 -W ignore -c {shlex.quote(OLD)} {port}"
    assert root.run(f"{line} TLSv1_1").rc != 0
    shown = root.run(f"{line} TLSv1_2")
    assert shown.rc == 0, shown.stderr
