"""
known_hosts is read as OpenSSH reads it; ssh-keygen is asked where it can answer.
"""

import base64
import os
import random
import subprocess

import paramiko
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import HostKeyMismatch
from deploy.transport import known_hosts
from deploy.transport.known_hosts import KnownHosts, Verdict, load, parse

KEYS = [paramiko.ECDSAKey.generate() for _ in range(3)]
RSA = paramiko.RSAKey.generate(1024)


def line(hosts, key, marker=""):
    return f"{marker} {hosts} {key.get_name()} {key.get_base64()} a comment".strip().encode()


def verdict(lines, key, address="n1", port=22):
    return parse(lines).verdict(address, port, key.asbytes())


def test_any_recorded_key_is_right():
    """
    Two keys of one type: the host key is being replaced, and both are recorded.
    """
    lines = [line("n1", KEYS[0]), line("n1", KEYS[1]), line("n1", RSA)]
    for key in (KEYS[0], KEYS[1], RSA):
        assert verdict(lines, key) is Verdict.KNOWN
    assert verdict(lines, KEYS[2]) is Verdict.OTHER
    assert verdict(lines, KEYS[0], address="n2") is Verdict.UNKNOWN


def test_a_revoked_key_is_refused_also_where_it_is_recorded():
    """
    The order of the lines does not matter, and a pattern may revoke it for all hosts.
    """
    recorded, revoked = line("n1", KEYS[0]), line("*", KEYS[0], "@revoked")
    for lines in ([recorded, revoked], [revoked, recorded], [revoked]):
        assert verdict(lines, KEYS[0]) is Verdict.REVOKED
    assert verdict([recorded, line("n2", KEYS[0], "@revoked")], KEYS[0]) is Verdict.KNOWN
    assert verdict([recorded, line("n1", KEYS[1], "@revoked")], KEYS[0]) is Verdict.KNOWN
    # A revoked key is not a recorded one: the host is still unknown.
    assert verdict([line("n1", KEYS[1], "@revoked")], KEYS[0]) is Verdict.UNKNOWN


@pytest.mark.parametrize("comment", ["ops@b\u00fcro".encode(), b"\xff\xfe", b"\x1b[2J"])
def test_a_comment_may_have_any_bytes(comment):
    """
    As for ssh(1): a revocation with such a comment is none that is skipped.
    """
    recorded = line("n1", KEYS[0])
    assert verdict([recorded + comment], KEYS[0]) is Verdict.KNOWN
    revoked = line("*", KEYS[0], "@revoked") + b" " + comment
    assert verdict([recorded, revoked], KEYS[0]) is Verdict.REVOKED
    named = "b\u00fcro,".encode() + recorded
    assert verdict([named], KEYS[0]) is Verdict.KNOWN


def test_a_certificate_authority_is_no_key_of_a_host():
    """
    It vouches for certificates; its own key, shown by a server, proves nothing.
    """
    lines = [line("*", KEYS[0], "@cert-authority"), line("n1", KEYS[1])]
    assert verdict(lines, KEYS[0]) is Verdict.OTHER
    assert verdict(lines, KEYS[1]) is Verdict.KNOWN
    assert verdict([line("n1", KEYS[0], "@unknown-marker")], KEYS[0]) is Verdict.UNKNOWN


def test_another_port_has_keys_of_its_own():
    """
    Keys of the bare address count where none is recorded with the port, as in ssh(1).
    """
    lines = [line("[n1]:2222", KEYS[0]), line("n1", KEYS[1])]
    assert verdict(lines, KEYS[0], port=2222) is Verdict.KNOWN
    assert verdict(lines, KEYS[1], port=2222) is Verdict.OTHER
    assert verdict(lines, KEYS[1], port=2200) is Verdict.KNOWN
    assert verdict(lines, KEYS[0]) is Verdict.OTHER


def hashed(name):
    salt = b"salt of twenty bytes"
    mac = known_hosts.hmac.new(salt, name.encode(), "sha1").digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(mac).decode()}"


def found_by_openssh(folder, lines, name):
    """
    Return whether ssh-keygen finds *name* in a file of *lines*.
    """
    path = folder / "known_hosts"
    path.write_bytes(b"\n".join(lines) + b"\n")
    argv = ["ssh-keygen", "-q", "-F", name, "-f", str(path)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("hosts", "address", "port"),
    [
        ("n1", "n1", 22),
        ("N1", "n1", 22),
        ("n1", "N1", 22),
        ("n2,n1", "n1", 22),
        ("n*", "n1", 22),
        ("n?", "n1", 22),
        ("n?", "n12", 22),
        ("*,!n1", "n1", 22),
        ("!n1,*", "n2", 22),
        ("!n1", "n2", 22),
        ("[n1]:22", "n1", 22),
        ("[n1]:2222", "n1", 2222),
        ("[*]:2222", "n1", 2222),
        ("10.0.0.*", "10.0.0.7", 22),
        ("2001:db8::1", "2001:db8::1", 22),
        ("[2001:db8::1]:2222", "2001:db8::1", 2222),
        (hashed("n1"), "n1", 22),
        (hashed("n1"), "n2", 22),
        (hashed("[n1]:2222"), "n1", 2222),
        ("|1|x|y", "n1", 22),
        ("|2|" + hashed("n1")[3:], "n1", 22),
        ("", "n1", 22),
        ("n1,", "n1", 22),
        ("*" * 30, "n1", 22),
    ],
)
def test_hosts_are_matched_as_openssh_matches_them(tmp_path, hosts, address, port):
    """
    Patterns, negated patterns, ports, IPv6 and hashed names.
    """
    lines = [line(hosts, KEYS[0])]
    name = address if port == 22 else f"[{address}]:{port}"
    expected = found_by_openssh(tmp_path, lines, name)
    assert (verdict(lines, KEYS[0], address, port) is Verdict.KNOWN) == expected


HOSTILE = [
    b"",
    b"#",
    b"@",
    b"@cert-authority",
    b"@revoked n1",
    b"@revoked @revoked n1 ssh-rsa AAAA",
    b"n1",
    b"n1 ssh-ed25519",
    b"n1 ssh-ed25519 !!!!",
    b"n1 ssh-ed25519 AAAA",
    b"n1 ssh-ed25519 " + base64.b64encode(b"\xff\xff\xff\xff"),
    b"n1 2048 65537 123456789",  # SSH-1
    b"\x00" * 1000,
    b"\x1b]0;title\x07 ssh-rsa AAAA",
    "n1 ssh-ed25519 ÄÖ".encode(),
    b"|1| ssh-rsa AAAA",
    b"|1|||| ssh-rsa AAAA",
    b"n1 ssh-ed25519 " + b"A" * 10_000_000,
    b"n1," * 1_000_000,
    b"*" * 60_000 + b" ssh-rsa AAAA",
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_line_that_is_no_entry_is_skipped(hostile):
    """
    The lines beside it count; nothing ends in a traceback.
    """
    lines = [hostile, line("n1", KEYS[0]), hostile]
    assert verdict(lines, KEYS[0]) is Verdict.KNOWN
    assert verdict(lines, KEYS[1]) is Verdict.OTHER


def test_paramiko_fails_at_such_lines(tmp_path):
    """
    Negative control: the reader that this one replaces ends with an exception, or keeps one key.
    """
    path = tmp_path / "known_hosts"
    path.write_bytes(line("*", KEYS[0], "@cert-authority") + b"\n")
    with pytest.raises(Exception):  # noqa: B017 - whichever
        paramiko.HostKeys(str(path))
    path.write_bytes(b"\n".join([line("n1", KEYS[0]), line("n1", KEYS[1])]))
    assert not paramiko.HostKeys(str(path)).check("n1", KEYS[1])


@given(st.lists(st.binary(max_size=200), max_size=20), st.text(max_size=30))
def test_any_bytes_are_read(lines, address):
    """
    No line and no address raises.
    """
    assert parse(lines).verdict(address, 22, KEYS[0].asbytes()) is Verdict.UNKNOWN


def test_stars_take_no_exponential_time():
    """
    A regular expression of this pattern would not end.
    """
    pattern = "*a" * 10_000 + "b"
    assert verdict([line(pattern, KEYS[0])], KEYS[0], "a" * 250) is Verdict.UNKNOWN


def test_random_files_change_no_verdict():
    """
    10,000 lines of garbage around one entry.
    """
    rng = random.Random(7)
    garbage = [bytes(rng.choices(range(256), k=rng.randrange(120))) for _ in range(10_000)]
    garbage = [line for text in garbage for line in text.split(b"\n")]
    lines = [*garbage, line("n1", KEYS[0]), *garbage]
    assert verdict(lines, KEYS[0]) is Verdict.KNOWN


def test_a_missing_file_has_no_entries(tmp_path):
    assert load(tmp_path / "none") == KnownHosts()


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """
    A directory or a pipe in its place, or a file of gigabytes.
    """
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(HostKeyMismatch) as caught:
            load(path)
        assert str(path) in caught.value.what
    (tmp_path / "large").write_bytes(b"x" * 100)
    monkeypatch.setattr(known_hosts, "_FILE_MAX", 99)
    with pytest.raises(HostKeyMismatch):
        load(tmp_path / "large")


def test_the_types_of_recorded_keys_are_asked_for():
    """
    A server with keys of several types is asked for one that can be compared.
    """
    lines = [line("n1", RSA), line("n1", KEYS[0]), line("n2", KEYS[1])]
    assert parse(lines).kinds("n1", 22) == ("ssh-rsa", KEYS[0].get_name())
    assert parse(lines).kinds("n3", 22) == ()
