from pathlib import Path

import pytest

from deploy.lab.config import LabConfig
from deploy.lab.keys import SIGNER, ensure_keys, known_hosts_text


@pytest.fixture
def config(tmp_path) -> LabConfig:
    return LabConfig(tmp_path / "lab", tmp_path)


def read_all(config: LabConfig) -> dict[str, str]:
    return {str(p.relative_to(config.keys)): p.read_text() for p in config.keys.rglob("*.pub")}


def test_known_hosts_has_a_line_for_each_host(config):
    """
    Address, key type and key, sorted by host.
    """
    (config.keys / "hosts").mkdir(parents=True)
    (config.keys / "hosts/n2.pub").write_text("ssh-ed25519 AAAA2 n2\n")
    (config.keys / "hosts/n1.pub").write_text("ssh-ed25519 AAAA1 n1\n")
    (config.keys / "hosts/n1").write_text("private")

    assert known_hosts_text(config) == (
        "10.78.0.11 ssh-ed25519 AAAA1\n10.78.0.12 ssh-ed25519 AAAA2\n"
    )


def test_existing_keys_are_kept(config):
    """
    A new host gets a key of its own; no other key changes.
    """
    ensure_keys(config, ("n1",), fresh=False)
    first = read_all(config)

    ensure_keys(config, ("n1", "n2"), fresh=False)

    assert first.items() <= read_all(config).items()
    assert (config.keys / "known_hosts").read_text().count("\n") == 2


def test_fresh_replaces_all_keys_except_the_signing_key(config):
    """
    known_hosts then has the new hosts only.
    """
    ensure_keys(config, ("n1", "n2"), fresh=False)
    first = read_all(config)

    ensure_keys(config, ("n1",), fresh=True)

    second = read_all(config)
    assert {name for name in second if second[name] == first[name]} == {"signing_ed25519.pub"}
    assert (config.keys / "known_hosts").read_text().count("\n") == 1


def test_an_incomplete_key_pair_is_replaced(config):
    """
    A killed command can leave a private key without its public key.
    """
    ensure_keys(config, ("n1",), fresh=False)
    (config.keys / "id_ed25519.pub").unlink()

    ensure_keys(config, ("n1",), fresh=False)

    assert (config.keys / "id_ed25519.pub").exists()


def test_only_the_owner_may_read_private_keys(config):
    """
    ssh refuses keys that others may read.
    """
    ensure_keys(config, ("n1",), fresh=False)

    for path in ("id_ed25519", "signing_ed25519", "hosts/n1"):
        assert (config.keys / path).stat().st_mode & 0o077 == 0
    assert Path(config.keys).stat().st_mode & 0o077 == 0


def test_the_signer_may_sign_bundles_and_nothing_else(config):
    """
    In the format of ssh-keygen(1), ALLOWED SIGNERS.
    """
    ensure_keys(config, (), fresh=False)

    signer, options, kind, _ = (config.keys / "allowed_signers").read_text().split()

    assert (signer, options, kind) == (SIGNER, 'namespaces="slipway-bundle"', "ssh-ed25519")
