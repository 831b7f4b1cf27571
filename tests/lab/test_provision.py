"""
Provisioning of booted hosts over real SSH: from nothing, again, and with everything going wrong.

The tests build on each other in this order: a bare lab becomes a provisioned one.
"""

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from deploy.host import layout
from deploy.host.protocol import Call, LeaseAcquire
from deploy.host.rpc import encode_request
from deploy.lab import lab
from deploy.provision import EventKind, provision
from deploy.verify import verify
from tests.lab.conftest import say
from tests.lab.own_lab import booted_lab
from tests.lab.provision_fixtures import ENV, HOSTS, TOKEN, World

ROOT = Path(__file__).parents[2]
SILENCE_S = 10.0  # before a host is given up
SLACK_S = 10.0  # for a machine that is busy
LEASE_S = 20.0  # of the runs of these tests


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with booted_lab("provision", len(HOSTS)) as config:
        yield World(config, tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def breaks(world):
    """
    For tests that break hosts: they run and answer afterwards, and nobody has them.
    """
    yield
    world.mend()
    wait_for_leases(world)


def run(world, *, check=False, env=ENV, when=None, limit=None, **changes):
    """
    Provision; *when* is called with every event.
    """
    return provision(
        world.fleet(limit, **changes),
        check=check,
        progress=when or (lambda _: None),
        env=env,
        lease_s=LEASE_S,
    )


def wait_for_leases(world):
    """
    Wait until no host has a lease: one that was lost in the middle keeps that of the run.
    """
    give_up_s = time.monotonic() + 3 * LEASE_S
    while any(failure.error == "LeaseHeld" for failure in run(world, check=True).failed):
        assert time.monotonic() < give_up_s
        time.sleep(1.0)


def at(host, word, then):
    """
    Return a progress callback that calls *then* once, when *host* begins to change *word*.
    """
    done = []

    def progress(event):
        begins = event.host == host and event.kind is EventKind.CHANGING
        if begins and word in event.resource and not done:
            done.append(time.monotonic())
            then()

    progress.happened = done
    return progress


def test_a_check_of_bare_hosts_changes_nothing(world):
    """
    `--check` names everything that a run would do, and does none of it.
    """
    report = run(world, check=True)

    assert report.ok == HOSTS, report.failed
    assert {c.resource for c in report.changes if c.host == "n1"} >= {
        *("packages", "user slipway", layout.ENVIRONMENT, layout.HAPROXY_UNIT)
    }
    assert report.commands == dict.fromkeys(HOSTS, 1)
    gone = "! test -e /etc/slipway && ! test -e /opt/slipway && ! id slipway 2>/dev/null"
    for host in HOSTS:
        world.inside(host, f"{gone} && ! test -e /usr/sbin/haproxy")


def test_a_host_that_freezes_is_reported_and_the_others_are_done(world, breaks):
    """
    One of four hosts stops answering in the middle: three are provisioned, one is named.
    """
    freeze = at("n4", "packages", lambda: lab.freeze("n4", config=world.config))
    ended = []

    def when(event):
        freeze(event)
        if event.host == "n4" and event.kind is EventKind.FAILED:
            ended.append(time.monotonic())

    report = run(world, when=when)

    assert report.ok == ("n1", "n2", "n3"), report.failed
    [failure] = report.failed
    assert (failure.host, failure.error) == ("n4", "TransportError")
    assert "while: packages" in failure.why
    assert ended[0] - freeze.happened[0] < 2.0 + SILENCE_S + SLACK_S


def test_a_host_that_is_cut_off_is_reported_and_nothing_hangs(world, breaks):
    """
    The link of one host dies in the middle: the run ends by itself and says which.
    """
    cut = at("n4", "venv", lambda: lab.cut("n4", config=world.config))
    report = run(world, when=cut)
    assert cut.happened, report.failed
    took_s = time.monotonic() - cut.happened[0]

    assert report.ok == ("n1", "n2", "n3"), report.failed
    assert {c.host for c in report.changes} == {"n4"}
    [failure] = report.failed
    assert (failure.host, failure.error) == ("n4", "TransportError")
    assert took_s < 2.0 + SILENCE_S + SLACK_S


def test_the_next_run_finishes_what_was_left(world):
    """
    The host that was lost twice is brought to the same state; the others are left alone.
    """
    report = run(world)
    assert report.ok == HOSTS, report.failed
    assert {c.host for c in report.changes} == {"n4"}


def test_a_second_run_changes_nothing_with_one_command_a_host(world):
    """
    An unchanged fleet costs one SSH command a host, counted by its sshd.
    """
    before = {host: world.commands_seen(host) for host in HOSTS}
    report = run(world)
    assert (report.ok, report.changes, report.failed) == (HOSTS, (), ())
    assert report.commands == dict.fromkeys(HOSTS, 1)
    assert {host: world.commands_seen(host) - before[host] for host in HOSTS} == report.commands


def test_verify_holds_on_every_host(world, tmp_path):
    """
    A provisioned host passes every assertion.
    """
    report = verify(world.fleet(), junit=tmp_path / "junit.xml", progress=say)
    assert report.failed == ()
    assert report.passed >= 15 * len(HOSTS)


def test_verify_names_what_is_wrong_and_provision_mends_it(world, tmp_path):
    """
    Negative control: what others can read or write is found on its host, and put right.
    """
    world.inside("n2", f"chmod 644 {layout.ENVIRONMENT}")
    world.inside("n3", f"chmod 777 {layout.WHEELHOUSE}")
    found = verify(world.fleet(), junit=tmp_path / "junit.xml", progress=say)
    assert {(f.host, f.test) for f in found.failed} == {
        ("n2", "test_secrets_are_for_root_alone"),
        ("n3", "test_directories_belong_to_root"),
        ("n3", "test_the_runtime_can_write_nothing_that_is_shared"),
    }

    report = run(world)
    assert [(c.host, c.resource, c.change) for c in report.changes] == [
        ("n2", layout.ENVIRONMENT, "mode 0644 → 0600"),
        ("n3", layout.WHEELHOUSE, "mode 0777 → 0750"),
    ]


def test_a_wrong_host_key_sends_nothing(world, tmp_path):
    """
    A host that shows another key than the recorded one gets no login and no command.
    """
    recorded = (world.config.keys / "known_hosts").read_text().splitlines()
    by_host = {line.split()[0]: line for line in recorded if line.strip()}
    [n1, n2] = [world.config.address(name) for name in ("n1", "n2")]
    wrong = tmp_path / "known_hosts"
    swapped = by_host[n1].replace(n1, n2, 1)
    wrong.write_text("\n".join([*(v for k, v in by_host.items() if k != n2), swapped]) + "\n")
    before = world.inside("n2", "journalctl -b -o cat -t sshd | grep -c Accepted || :")

    report = run(world, ssh={"known_hosts": str(wrong)})

    assert report.ok == ("n1", "n3", "n4")
    [failure] = report.failed
    assert (failure.host, failure.error) == ("n2", "HostKeyMismatch")
    assert world.inside("n2", "journalctl -b -o cat -t sshd | grep -c Accepted || :") == before


def test_a_host_that_is_down_is_reported(world, breaks):
    """
    A host without power is named, and the others are read.
    """
    lab.crash("n3", progress=say, config=world.config)
    report = run(world)
    assert report.ok == ("n1", "n2", "n4")
    assert [(f.host, f.error) for f in report.failed] == [("n3", "TransportError")]
    assert report.took_s < 5.0 * 4 + SLACK_S


def test_a_port_in_use_is_named_and_nothing_is_touched(world):
    """
    The program that holds the public port is named; the host stays as it was.
    """
    script = "systemd-run --unit=squatter python3 -m http.server 8123 --bind 0.0.0.0"
    world.inside("n1", script)
    listening = "for i in $(seq 50); do ss -Hltn sport = :8123 | grep -q . && exit; sleep .1; done"
    world.inside("n1", listening)
    before = world.inside("n1", "sha256sum /etc/haproxy/haproxy.cfg")
    report = run(world, limit="n1", service={**world_service(), "port": 8123})
    world.inside("n1", "systemctl stop squatter")

    [failure] = report.failed
    assert (failure.host, failure.error) == ("n1", "PortInUse")
    assert "python3" in failure.why
    assert report.changes == ()
    assert world.inside("n1", "sha256sum /etc/haproxy/haproxy.cfg") == before


def world_service():
    return {"device": "cpu", "precision": "fp32", "threads": 1, "api_tokens": ["token"]}


WATCH = textwrap.dedent(
    """
    import json, os, stat, sys, time
    seen, end = set(), time.monotonic() + float(sys.argv[1])
    print("watching", flush=True)
    while time.monotonic() < end and not os.path.exists("/run/watch.end"):
        for folder in ("/etc/slipway", "/tmp"):
            for entry in os.scandir(folder):
                if not entry.is_file(follow_symlinks=False):
                    continue
                try:
                    mode = stat.S_IMODE(entry.stat().st_mode)
                    with open(entry.path, "rb") as file:
                        held = sys.argv[2].encode() in file.read(4096)
                except OSError:
                    continue
                if held:
                    seen.add((entry.path, mode & 0o077))
    print(json.dumps(sorted(seen)))
    """
)


class Watcher:
    """
    Looks on a host, as fast as it can, who may read the files that hold a secret.
    """

    def __init__(self, world, host, secret):
        self.world, self.host, self.secret = world, host, secret

    def __enter__(self):
        self.world.inside(self.host, "rm -f /run/watch.end")
        argv = [*lab.ssh_argv(self.host, config=self.world.config)]
        command = f"python3 - 60 {self.secret}"
        self._child = subprocess.Popen(
            [*argv, command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._child.stdin.write(WATCH)
        self._child.stdin.close()
        assert self._child.stdout.readline() == "watching\n"
        return self

    def __exit__(self, *_):
        self.world.inside(self.host, "touch /run/watch.end")
        import json

        self.seen = {tuple(entry) for entry in json.loads(self._child.stdout.readline())}
        self._child.wait()


def test_a_secret_is_never_readable_by_others(world):
    """
    While a token is replaced again and again, no file that holds it can be read by others.
    """
    new = "second-Token.2"
    with Watcher(world, "n1", new) as watcher:
        for token in (new, TOKEN):
            report = run(world, limit="n1", env={"SLIPWAY_TEST_TOKEN": token})
            assert [c.resource for c in report.changes] == [layout.ENVIRONMENT]
            assert all(c.diff is None and token not in c.change for c in report.changes)

    assert (layout.ENVIRONMENT, 0) in watcher.seen
    assert {may for _, may in watcher.seen} == {0}
    assert TOKEN in world.inside("n1", f"cat {layout.ENVIRONMENT}")


def test_the_watcher_sees_what_pyinfra_does_by_itself(world, tmp_path):
    """
    Negative control: pyinfra's own `files.put` of a 0600 file is seen readable by all.
    """
    new = "third-Token.3"
    source = tmp_path / "environment"
    # Large enough for the moment between writing and closing to be met.
    source.write_text(f"{new}\n" + "#" * 4_000_000)
    script = textwrap.dedent(
        """
        import gevent.monkey; gevent.monkey.patch_all()
        import sys
        from pyinfra.api import Config, Inventory, State
        from pyinfra.api.connect import connect_all
        from pyinfra.api.operation import add_op
        from pyinfra.api.operations import run_ops
        from pyinfra.operations import files
        address, key, known, source, n = sys.argv[1:]
        data = {"ssh_user": "root", "ssh_key": key, "ssh_known_hosts_file": known}
        state = State(Inventory(([(address, data)], {})), Config())
        connect_all(state)
        for i in range(int(n)):
            add_op(state, files.put, name="put", src=source, dest=f"/etc/slipway/try{i}",
                   mode="600", user="root", group="root")
        run_ops(state)
        """
    )
    keys = world.config.keys
    argv = [world.config.address("n1"), keys / "id_ed25519", keys / "known_hosts", source, 5]
    with Watcher(world, "n1", new) as watcher:
        subprocess.run(
            [sys.executable, "-c", script, *map(str, argv)], check=True, timeout=60, cwd=tmp_path
        )
    world.inside("n1", "rm -f /etc/slipway/try*")
    assert any(may & 0o044 for _, may in watcher.seen), watcher.seen


def test_an_ordinary_user_with_sudo_will_do(world):
    """
    Without root login all commands run through sudo, and no secret passes through /tmp.
    """
    key = (world.config.keys / "id_ed25519.pub").read_text().strip()
    world.inside(
        "n2",
        "useradd -m -s /bin/sh ops && install -d -m 700 -o ops -g ops /home/ops/.ssh && "
        f"echo '{key}' >/home/ops/.ssh/authorized_keys && "
        "chown ops:ops /home/ops/.ssh/authorized_keys && "
        "chmod 600 /home/ops/.ssh/authorized_keys && "
        "echo 'ops ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/ops && chmod 440 /etc/sudoers.d/ops",
    )
    as_ops = {"ssh": world_ssh(world) | {"user": "ops"}}
    assert run(world, limit="n2", **as_ops).changes == ()

    new = "fourth-Token.4"
    with Watcher(world, "n2", new) as watcher:
        report = run(world, limit="n2", env={"SLIPWAY_TEST_TOKEN": new}, **as_ops)
    assert [c.resource for c in report.changes] == [layout.ENVIRONMENT]
    assert report.ok == ("n2",)
    assert {path.rpartition("/")[0] for path, _ in watcher.seen} <= {layout.ETC}
    assert {may for _, may in watcher.seen} <= {0}
    shown = world.inside("n2", f"stat -c '%U:%G %a' {layout.ENVIRONMENT}")
    assert shown.strip() == "root:root 600"
    run(world, limit="n2")


def world_ssh(world):
    return {
        "key": str(world.config.keys / "id_ed25519"),
        "known_hosts": str(world.config.keys / "known_hosts"),
    }


def test_the_way_in_may_lead_through_a_jump_host(world, tmp_path):
    """
    A fleet behind a bastion is provisioned and verified through it.
    """
    through = {"ssh": world_ssh(world) | {"jump": f"root@{world.config.address('n1')}"}}
    report = run(world, limit="n3", **through)
    assert (report.ok, report.changes, report.failed) == (("n3",), (), ())
    fleet = world.fleet("n3", **through)
    assert verify(fleet, junit=tmp_path / "junit.xml", progress=say).failed == ()


def test_an_older_host_program_is_replaced(world):
    """
    A host of an earlier release, which speaks another protocol, is upgraded in place.
    """
    world.inside(
        "n2",
        f"printf 'print({{\"ok\": True}})' >{layout.HOST_PROGRAM} && "
        f'printf \'{{"locks": [], "port": 8000}}\' >{layout.HOST_CONFIG}',
    )
    report = run(world)
    assert report.ok == HOSTS, report.failed
    assert [(c.host, c.resource) for c in report.changes] == [
        ("n2", layout.HOST_PROGRAM),
        ("n2", layout.HOST_CONFIG),
    ]


def test_a_login_shell_that_prints_is_no_obstacle(world):
    """
    What .bashrc of the SSH user prints before a command is not taken for facts.
    """
    world.inside("n3", "cp -p /root/.bashrc /root/bashrc.kept; echo 'echo Welcome' >/root/.bashrc")
    report = run(world, limit="n3")
    world.inside("n3", "mv /root/bashrc.kept /root/.bashrc")
    assert (report.ok, report.changes, report.failed) == (("n3",), (), ())


def test_a_reload_that_was_forgotten_is_made_good(world):
    """
    A run that died between the new file and the reload leaves work for the next one.
    """
    config = "/etc/haproxy/haproxy.cfg"
    world.inside(
        "n1",
        f"cp -p {config} /root/right && sed -i 's/description .*/description other/' {config} && "
        f"systemctl reload haproxy && sleep 1 && cp -p /root/right {config}",
    )
    report = run(world)
    assert [(c.host, c.resource, c.change) for c in report.changes] == [
        ("n1", layout.HAPROXY_UNIT, "reload")
    ]


def test_a_release_in_progress_keeps_provisioning_away(world):
    """
    A host with a lease in force is read; one that differs is not changed.
    """
    program = f"{' '.join(layout.HOST_COMMAND)} {LeaseAcquire.VERB}"
    request = encode_request(LeaseAcquire(owner="ann", ttl_s=60.0), Call(release="r9"))
    world.inside("n1", f"echo '{request.decode()}' | {program} | grep -q '\"ok\": true'")
    assert run(world, limit="n1").ok == ("n1",)

    report = run(world, limit="n1", env={"SLIPWAY_TEST_TOKEN": "fifth-Token.5"})
    assert [(f.host, f.error) for f in report.failed] == [("n1", "LeaseHeld")]
    assert "ann" in report.failed[0].why
    assert report.changes == ()
    world.inside("n1", f"rm -f {layout.LEASE}")


def test_shares_outlive_a_restart_and_a_reboot(world, breaks):
    """
    HAProxy restores the saved weights and states after a restart and after a boot.
    """
    ask = f"socat - UNIX-CONNECT:{layout.HAPROXY_SOCKET}"
    back = layout.BACKEND
    wanted = {"blue": ("90", "ready"), "green": ("10", "drain")}
    for server, (weight, state) in wanted.items():
        world.inside("n2", f"echo 'set server {back}/{server} weight {weight}' | {ask}")
        world.inside("n2", f"echo 'set server {back}/{server} state {state}' | {ask}")
    world.inside("n2", f"echo 'show servers state' | {ask} >{layout.HAPROXY_STATE}")

    def shares():
        # Columns: 4 name, 7 administrative state (1: maintenance, 8: drain), 8 weight.
        shown = world.inside("n2", f"echo 'show servers state {back}' | {ask}")
        rows = [line.split() for line in shown.splitlines()[2:] if line.strip()]
        return {row[3]: (row[7], int(row[6]) & 9) for row in rows}

    before = shares()
    assert before == {"blue": ("90", 0), "green": ("10", 8)}
    world.inside("n2", "systemctl restart haproxy")
    assert shares() == before

    lab.crash("n2", progress=say, config=world.config)
    lab.start("n2", progress=say, config=world.config)
    deadline_s = time.monotonic() + 20
    ready = lab.inside("n2", ["test", "-S", layout.HAPROXY_SOCKET], config=world.config)
    while ready.returncode != 0 and time.monotonic() < deadline_s:
        threading.Event().wait(0.2)
        ready = lab.inside("n2", ["test", "-S", layout.HAPROXY_SOCKET], config=world.config)
    assert shares() == before
    assert run(world, limit="n2").changes == ()


def test_an_operator_that_dies_leaves_no_run_behind(world, breaks):
    """
    When the operator's process is killed in the middle, its worker stops too.
    """
    script = textwrap.dedent(
        f"""
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from deploy.inventory.load import load_fleet
        from deploy.provision import EventKind, provision
        def when(event):
            if event.kind is EventKind.CHANGING:
                print("changing", flush=True)
        provision(load_fleet("lab", root=Path(sys.argv[1]), limit="n4"), progress=when,
                  env={{"SLIPWAY_TEST_TOKEN": "{TOKEN}"}}, lease_s={LEASE_S})
        """
    )
    # The host is stopped in the middle, and the worker is patient: only its parent's end ends it.
    world.inside("n4", f"rm {layout.UV}")
    world.inside(
        "n4",
        "printf '#!/bin/sh\\nexec sleep 60\\n' >/usr/local/bin/ln; chmod +x /usr/local/bin/ln",
    )
    world.fleet("n4", ssh=world_ssh(world) | {"keepalive": "60s", "command_timeout": "5m"})
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(world.root)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "changing\n"
    workers = subprocess.run(
        ["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    world.inside("n4", "until pgrep -f [s]leep.60; do :; done")
    assert workers
    assert all(_is_alive(int(pid)) for pid in workers)
    child.kill()
    child.wait()
    deadline_s = time.monotonic() + 10
    while any(_is_alive(int(pid)) for pid in workers) and time.monotonic() < deadline_s:
        threading.Event().wait(0.1)
    assert not any(_is_alive(int(pid)) for pid in workers)
    world.inside("n4", "rm /usr/local/bin/ln; pkill -f [s]leep.60")
    wait_for_leases(world)
    assert run(world, limit="n4").ok == ("n4",)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
