import subprocess

import pytest

from deploy.errors import LabError
from deploy.lab import sources
from deploy.lab.sources import apt_settings, archive_entries, pip_config, pip_files

DEBIAN = """\
http://mirror.test/debian/|bookworm|main|Debian
http://mirror.test/debian/|bookworm-updates|main|Debian
http://mirror.test/security/|bookworm-security|main|Debian
"""
ENTRIES = archive_entries(DEBIAN, "bookworm", "bookworm")


def test_hosts_use_the_machines_own_mirrors():
    """
    Those of the archive, its updates and security.
    """
    assert ENTRIES == (
        ("http://mirror.test/debian/", "bookworm", "main"),
        ("http://mirror.test/debian/", "bookworm-updates", "main"),
        ("http://mirror.test/security/", "bookworm-security", "main"),
    )


def test_a_mirror_of_another_debian_release_is_used():
    """
    A mirror with trixie has bookworm too.
    """
    text = DEBIAN.replace("bookworm", "trixie")

    assert archive_entries(text, "trixie", "bookworm") == ENTRIES


def test_a_source_whose_list_was_never_fetched_is_used():
    """
    apt does not know its origin then, and leaves the field of the format as it is.
    """
    text = DEBIAN.replace("|Debian", "|$(ORIGIN)")

    assert archive_entries(text, "bookworm", "bookworm") == ENTRIES


@pytest.mark.parametrize(
    "line",
    [
        "https://docker.test/debian/|bookworm|stable|Docker",
        "https://tools.test/|bookworm|main|Artifactory",
        "https://pg.test/|bookworm-pgdg|main|apt.postgresql.org",
        "http://mirror.test/debian/|bookworm-backports|main|Debian",
        "http://mirror.test/debian/|sid|main|Debian",
    ],
)
def test_sources_outside_the_debian_archive_are_ignored(line):
    """
    Hosts do not have their keys.
    """
    assert archive_entries(DEBIAN + line + "\n", "bookworm", "bookworm") == ENTRIES


def test_ubuntu_has_no_debian_mirror():
    """
    debootstrap's default is used then.
    """
    text = "http://archive.test/ubuntu/|noble|main|Ubuntu\n"

    assert archive_entries(text, "noble", "bookworm") == ()


def test_hosts_of_another_release_use_the_same_archive():
    """
    A mirror with bookworm has trixie too, with its updates and security.
    """
    text = DEBIAN.replace("bookworm", "trixie")

    assert archive_entries(DEBIAN, "bookworm", "trixie") == archive_entries(
        text, "trixie", "trixie"
    )
    assert ("http://mirror.test/security/", "trixie-security", "main") in archive_entries(
        DEBIAN, "bookworm", "trixie"
    )


@pytest.mark.parametrize(
    ("machine", "suite", "mirror"),
    [
        ({"ID": "debian", "VERSION_CODENAME": "bookworm"}, "trixie", "http://mirror.test/"),
        ({"ID": "other", "ID_LIKE": "debian"}, "bookworm", "http://mirror.test/"),
        ({"ID": "debian", "VERSION_CODENAME": "bookworm"}, "noble", None),
    ],
)
def test_a_mirror_serves_hosts_of_its_own_distribution(monkeypatch, machine, suite, mirror):
    """
    For others debootstrap's default is used, also where apt does not know a source's origin.
    """
    outputs = {"apt-get": "http://mirror.test/|bookworm|main|$(ORIGIN)\n", "apt-config": ""}
    monkeypatch.setattr(sources, "run", lambda argv, **_: outputs[argv[0]])

    read = sources.read(machine, suite)

    assert (read.mirror, read.apt_sources) == (
        mirror,
        f"deb {mirror} {suite} main\n" if mirror else "",
    )


def test_apt_settings_are_those_of_fetching():
    """
    Proxies and checks, without hooks, caches, and programs that only this machine has.
    """
    dump = """\
Acquire::http "";
Acquire::http::Proxy "http://proxy.test:3128";
Acquire::http::Proxy-Auto-Detect "/usr/bin/auto-apt-proxy";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Acquire::Languages "none";
Dir::Cache "var/cache/apt";
DPkg::Post-Invoke:: "rm -f /x";
"""

    assert apt_settings(dump, {}).splitlines() == [
        'Acquire::http::Proxy "http://proxy.test:3128";',
        'Acquire::Check-Valid-Until "false";',
        'Acquire::Retries "3";',
    ]


def test_the_environments_proxy_is_used_if_apt_has_none():
    """
    apt on this machine does the same.
    """
    env = {"http_proxy": "http://env.test:1"}

    assert apt_settings("", env) == 'Acquire::http::Proxy "http://env.test:1";\n'
    assert "env.test" not in apt_settings('Acquire::http::Proxy "http://apt.test:1";\n', env)


def test_pip_keeps_what_hosts_can_reach():
    """
    URLs stay and folders of this machine go.  A later file overrides an earlier one, and the
    environment overrides all files.
    """
    machine = (
        "[global]\nindex-url = https://etc.test/simple\ntimeout = 9\ncert = /home/ada/ca.pem\n"
    )
    user = """\
[install]
index-url = https://user.test/simple
extra-index-url =
    file:///srv/simple
    https://more.test/si%mple
"""
    env = {"PIP_FIND_LINKS": "/srv/wheels", "PIP_PROXY": "http://proxy.test:1"}

    assert pip_config([machine, user], env).splitlines() == [
        "[global]",
        "index-url = https://user.test/simple",
        "extra-index-url = https://more.test/si%mple",
        "proxy = http://proxy.test:1",
        "timeout = 9",
        "cert = /etc/ssl/certs/ca-certificates.crt",
    ]


@pytest.mark.parametrize("texts", [[], ["not a configuration"], ["[list]\nformat = json\n"]])
def test_without_settings_pip_conf_has_only_the_certificates(texts):
    """
    A broken file counts as one without settings; pip itself reports it.
    """
    assert pip_config(texts, {}) == "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"


def test_the_configuration_files_are_those_of_pip():
    """
    The machine's files, then the user's, then PIP_CONFIG_FILE.
    """
    env = {"HOME": "/home/ada", "PIP_CONFIG_FILE": "/srv/pip.conf"}

    names = [str(path) for path in pip_files(env)]

    assert names == [
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        "/home/ada/.pip/pip.conf",
        "/home/ada/.config/pip/pip.conf",
        "/srv/pip.conf",
    ]


def test_apt_of_a_busy_machine_has_two_minutes(monkeypatch):
    def never_ends(argv, *, timeout, **_):
        raise subprocess.TimeoutExpired(argv, timeout)

    monkeypatch.setattr(subprocess, "run", never_ends)
    with pytest.raises(LabError) as caught:
        sources.read({}, "bookworm")
    assert "apt-get indextargets" in caught.value.what
    assert caught.value.why == "it ran for more than 120 s"
