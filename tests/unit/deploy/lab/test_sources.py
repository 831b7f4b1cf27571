import pytest

from deploy.lab.sources import apt_settings, debian_entries, pip_config, pip_files

DEBIAN = """\
http://mirror.test/debian/|bookworm|main|Debian
http://mirror.test/debian/|bookworm-updates|main|Debian
http://mirror.test/security/|bookworm-security|main|Debian
"""


def test_hosts_use_the_machines_own_mirrors():
    """
    The archive, its updates and security, from wherever the machine takes them.
    """
    assert debian_entries(DEBIAN, "bookworm") == (
        ("http://mirror.test/debian/", "bookworm", "main"),
        ("http://mirror.test/debian/", "bookworm-updates", "main"),
        ("http://mirror.test/security/", "bookworm-security", "main"),
    )


def test_a_machine_with_another_debian_names_the_same_archive():
    """
    A mirror of trixie has bookworm too.
    """
    text = DEBIAN.replace("bookworm", "trixie")

    assert debian_entries(text, "trixie") == debian_entries(DEBIAN, "bookworm")


def test_a_list_that_was_never_fetched_counts():
    """
    apt then does not know its origin, and leaves the field as it was asked.
    """
    text = DEBIAN.replace("|Debian", "|$(ORIGIN)")

    assert debian_entries(text, "bookworm") == debian_entries(DEBIAN, "bookworm")


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
def test_archives_of_others_are_left_to_the_machine(line):
    """
    Their keys are not on hosts, and their packages are not Debian's.
    """
    assert debian_entries(DEBIAN + line + "\n", "bookworm") == debian_entries(DEBIAN, "bookworm")


def test_ubuntu_has_no_debian_mirror():
    """
    Then debootstrap's own default is used.
    """
    text = "http://archive.test/ubuntu/|noble|main|Ubuntu\n"

    assert debian_entries(text, "noble") == ()


def test_apt_settings_are_those_that_fetch():
    """
    Proxies and checks; nothing of hooks, caches or programs that lie on the machine only.
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


def test_a_proxy_of_the_environment_counts_where_apt_names_none():
    """
    As it does for apt on the machine.
    """
    env = {"http_proxy": "http://env.test:1"}

    assert apt_settings("", env) == 'Acquire::http::Proxy "http://env.test:1";\n'
    assert "env.test" not in apt_settings('Acquire::http::Proxy "http://apt.test:1";\n', env)


def test_pip_keeps_what_hosts_can_reach():
    """
    Addresses stay, folders of the machine go; a later file goes before an earlier one, and the
    environment before all.
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
def test_nothing_said_is_nothing_copied(texts):
    """
    Also when a file is broken: pip itself says that better.
    """
    assert pip_config(texts, {}) == "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"


def test_pip_looks_where_pip_looks():
    """
    The user's file after the machine's, then the one that is named.
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
