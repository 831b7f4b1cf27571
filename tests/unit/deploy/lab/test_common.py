from dataclasses import replace

import pytest

from deploy.lab.common import MASKED, resolver, write_common
from deploy.lab.config import LabConfig
from deploy.lab.keys import ensure_keys
from deploy.lab.sources import Sources


@pytest.fixture
def config(tmp_path) -> LabConfig:
    config = LabConfig(tmp_path / "lab", tmp_path)
    ensure_keys(config, (), fresh=True)
    return config


SOURCES = Sources(
    mirror=None,
    http_proxy=None,
    apt_sources="deb http://mirror.test/ bookworm main\n",
    apt_settings='Acquire::Retries "3";\n',
    pip_config="[global]\nindex-url = https://ada:secret@pip.test/simple\n",
)


def test_hosts_use_the_servers_upstream_of_a_loopback_resolver(tmp_path):
    """
    Hosts cannot reach a resolver on the machine's loopback.
    """
    etc, upstream = tmp_path / "resolv.conf", tmp_path / "upstream"
    upstream.write_text("nameserver 192.0.2.53\n")

    etc.write_text("nameserver 127.0.0.53\n")
    assert resolver(etc, upstream) == "nameserver 192.0.2.53\n"
    etc.write_text("nameserver 192.0.2.1\n")
    assert resolver(etc, upstream) == "nameserver 192.0.2.1\n"


def test_the_layer_lets_the_operator_in_and_nobody_else(config):
    """
    It has the operator's key, with modes that sshd accepts, and disables passwords.
    """
    write_common(config, SOURCES)

    authorized = config.common / "root/.ssh/authorized_keys"
    assert authorized.read_text() == (config.keys / "id_ed25519.pub").read_text()
    assert authorized.stat().st_mode & 0o777 == 0o600
    assert authorized.parent.stat().st_mode & 0o777 == 0o700
    sshd = (config.common / "etc/ssh/sshd_config.d/lab.conf").read_text()
    assert "PasswordAuthentication no" in sshd


def test_the_layer_carries_the_machines_package_settings(config):
    """
    Only root may read pip.conf: an index URL may contain a password.
    """
    write_common(config, SOURCES)

    etc = config.common / "etc"
    assert (etc / "apt/sources.list").read_text() == SOURCES.apt_sources
    assert (etc / "apt/apt.conf.d/90lab").read_text() == SOURCES.apt_settings
    assert (etc / "pip.conf").stat().st_mode & 0o777 == 0o600


def test_timers_that_start_by_themselves_are_masked(config):
    """
    A masked unit is a link to /dev/null.
    """
    write_common(config, SOURCES)

    units = config.common / "etc/systemd/system"
    assert {str((units / name).readlink()) for name in MASKED} == {"/dev/null"}


def test_writing_again_replaces_the_whole_layer(config):
    """
    A file that is no longer part of the layer disappears.
    """
    write_common(config, SOURCES)
    (config.common / "etc/stale").touch()

    write_common(config, SOURCES)

    assert not (config.common / "etc/stale").exists()


def test_a_password_of_a_mirror_is_for_root_alone(config):
    """
    Other settings of apt can be read by all users of a host, as on any Debian.
    """
    plain, login = 0o644, 0o600
    write_common(config, SOURCES)
    etc = config.common / "etc/apt"
    modes = [(etc / name).stat().st_mode & 0o777 for name in ("sources.list", "apt.conf.d/90lab")]
    assert modes == [plain, plain]

    secret = "http://ada:s3cret@mirror.test/"
    write_common(
        config,
        replace(
            SOURCES,
            apt_sources=f"deb {secret} bookworm main\n",
            apt_settings=f'Acquire::http::Proxy "{secret}";\n',
        ),
    )
    modes = [(etc / name).stat().st_mode & 0o777 for name in ("sources.list", "apt.conf.d/90lab")]
    assert modes == [login, login]
