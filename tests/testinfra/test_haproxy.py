import re

from deploy.host import layout

CONFIG = "/etc/haproxy/haproxy.cfg"


def test_haproxy_runs_and_starts_at_boot(root):
    """
    HAProxy is enabled and active.
    """
    shown = root.run(
        f"systemctl is-enabled {layout.HAPROXY_UNIT}; systemctl is-active {layout.HAPROXY_UNIT}"
    ).stdout.split()
    assert shown == ["enabled", "active"]


def test_its_configuration_is_valid(root):
    """
    HAProxy accepts the configuration on the disk.
    """
    shown = root.run(f"haproxy -q -c -f {CONFIG}")
    assert shown.rc == 0, shown.stderr


def test_it_runs_with_the_configuration_on_the_disk(root):
    """
    The loaded configuration is the one on the disk: no reload is missing.
    """
    written = re.search(r"^\s+description (.*)$", root.file(CONFIG).content_string, re.MULTILINE)
    info = root.check_output(f"echo show info | socat - UNIX-CONNECT:{layout.HAPROXY_SOCKET}")
    loaded = re.search(r"^description: (.*)$", info, re.MULTILINE)
    assert written is not None
    assert loaded is not None
    assert loaded[1] == written[1]


def test_its_socket_is_for_root_alone(root):
    """
    Only root may shift traffic.
    """
    shown = root.check_output(f"stat -c '%U %a' {layout.HAPROXY_SOCKET}")
    assert shown == "root 600"


def test_it_alone_listens_on_the_public_port(root, expected):
    """
    The public port belongs to HAProxy.
    """
    shown = root.check_output(f"ss -Hltnp sport = :{expected['port']}")
    programs = set(re.findall(r'\(\("([^"]+)"', shown))
    assert programs == {"haproxy"}


def test_both_slots_are_its_servers(root):
    """
    The backend has the two slots, by the names that releases use.
    """
    shown = root.check_output(
        f"echo 'show servers state {layout.BACKEND}' | socat - UNIX-CONNECT:{layout.HAPROXY_SOCKET}"
    )
    rows = [line.split() for line in shown.splitlines()[2:] if line.strip()]
    assert {row[3] for row in rows} == set(layout.SLOTS)
