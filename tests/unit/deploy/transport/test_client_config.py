"""
What ~/.ssh/config asks for and slipway cannot do, by the real `ssh -G`.
"""

import shutil

import pytest

from deploy.errors import InventoryError
from deploy.transport.client_config import _route

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed")


@pytest.fixture
def route(tmp_path, monkeypatch):
    """
    Return a function that reads the hops to the host "gpu" from a configuration.
    """
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".ssh"
    folder.mkdir()

    def read(*lines):
        (folder / "config").write_text("\n".join(lines) + "\n")
        return _route("n1", None, "gpu", None, None, 0)

    return read


def test_the_tokens_of_an_identity_file_are_expanded(route, tmp_path):
    key = tmp_path / ".ssh" / "gpu.example.com_root_key"
    key.touch()
    hop = route("HostName gpu.example.com", "User root", "IdentityFile %d/.ssh/%h_%r_key")[-1]
    assert hop.keys == (key,)


@pytest.mark.parametrize(("lines", "what"), [
    (["IdentityFile ~/.ssh/%C"], "IdentityFile"),
    (["IdentityFile ~/.ssh/none", "IdentitiesOnly yes"], "IdentitiesOnly"),
    (["RevokedHostKeys ~/.ssh/revoked"], "RevokedHostKeys"),
    (["ProxyCommand nc %h %p"], "ProxyCommand"),
    (["IdentityAgent /tmp/other"], "IdentityAgent"),
    (['User "a b"'], "User"),
    (['User "a\x1b[2J"'], "User"),
    (["User -oProxyCommand=x"], "User"),
    ([f"User {'a' * 5000}"], "User"),
    (["HostName -oProxyCommand=x"], "HostName"),
    (["Host gpu", "ProxyJump b", "Host b", "ProxyJump gpu"], "ProxyJump"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(route, lines, what):
    """
    ssh(1) would refuse a revoked key, and offer no other key than the named ones.
    """
    with pytest.raises(InventoryError) as caught:
        route(*lines)
    assert what in caught.value.what
    assert "ssh.client_config: false" in caught.value.fix


@pytest.mark.parametrize("user", ["ann", "ann@example.com", "CORP\\\\ann", "münchen"])
def test_the_users_of_directories_are_users(route, user):
    """
    The fleet file's own rule is narrower.
    """
    assert route(f"User {user}")[-1].user == user.replace("\\\\", "\\")


def test_a_jump_host_may_be_an_alias_that_is_no_dns_name(route):
    hops = route("Host gpu", "HostName 192.0.2.9", "ProxyJump ops@bastion_prod:2222",
                 "Host bastion_prod", "HostName 192.0.2.8")  # fmt: skip
    found = [(hop.user, hop.address, hop.port) for hop in hops]
    assert found[0] == ("ops", "192.0.2.8", 2222)
    assert found[1][1] == "192.0.2.9"


def test_an_alias_without_an_address_is_refused(route):
    with pytest.raises(InventoryError) as caught:
        route("Host gpu", "ProxyJump bastion_prod")
    assert "HostName" in caught.value.what


def test_the_line_that_ssh_refuses_is_named(route):
    """
    Its last line only says how many there are.
    """
    with pytest.raises(InventoryError, match="line 2: Bad configuration option: foo"):
        route("User x", "Foo bar")


def test_revoked_keys_and_only_named_keys_may_be_off(route):
    assert route("RevokedHostKeys none", "IdentitiesOnly no")
