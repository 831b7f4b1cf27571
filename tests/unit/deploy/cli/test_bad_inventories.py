"""
Fleet files that are wrong, given to `inv provision`: each is refused before the first connection,
with its key and its remedy.
"""

import socket
import time

import pytest

from deploy.inventory.document import format_path
from deploy.provision import run
from deploy.provision.survey import Survey
from tests.unit.deploy.inventory.builders import fleet_data, yaml_text
from tests.unit.deploy.inventory.schema_walk import EXAMPLE, concrete, leaves, with_value

BASE = {"row": "torch-2.13-cpu", "service.device": "cpu", "service.precision": "fp32"}
GPU = {"row": "torch-2.13-cu130", "service.device": "cuda", "service.precision": "bf16"}
DECIMAL = "write numbers in decimal"
HOST = "hosts.n1.address"
ONE_APT = {"uris": ["http://h/d"], "suites": ["bookworm"], "components": ["main"]}
ETCD = {"kind": "etcd", "endpoints": ["https://e:2379"]}
# The changes, the key that the error names, and words of its remedy.
CHANGED = [
    ({"row": "torch-2.13-cp"}, "row", "did you mean torch-2.13-cpu?"),
    ({"row": "torch-9.9"}, "row", "did you mean torch-"),
    ({"service.device": "cuda"}, "service.device", "set service.device: cpu, or a row with CUDA"),
    ({"row": "torch-2.13-cu130"}, "service.device", "set service.device: cuda, or a row for CPUs"),
    ({"hosts.n1.row": "torch-2.3-cu121"}, "service.device", "set service.device: cuda"),
    ({"service.prot": 1}, "service.prot", "did you mean port?"),
    ({"hosts.n1.adress": "h"}, "hosts.n1.adress", "did you mean address?"),
    ({"hosts.n1.ssh.prot": 1}, "hosts.n1.ssh.prot", "did you mean port?"),
    ({"release.kep": 1}, "release.kep", "did you mean keep?"),
    ({"relase": {}}, "relase", "did you mean release?"),
    ({"hosts": {}}, "hosts", "at least 1 entry"),
    ({"hosts.N1": {"address": "h"}}, "hosts.N1", "lower-case letters"),
    ({"hosts.n1.address": "300.1.2.3"}, HOST, "an IP address or a DNS name"),
    ({"hosts.n1.address": "0177.0.0.1"}, HOST, "an IP address or a DNS name"),
    ({"hosts.n1.address": "h\nProxyCommand x"}, HOST, "an IP address or a DNS name"),
    ({"hosts.n1.address": "0.0.0.0"}, HOST, "the IP address of one host"),
    ({"hosts.n2.address": "192.0.2.1"}, "hosts.n2.address", "hosts.n1 has the same address"),
    ({"hosts.n2.address": "::ffff:192.0.2.1"}, "hosts.n2.address", "has the same address"),
    ({"groups.a.hosts": ["n9"]}, "groups.a.hosts[0]", "known here: n1, n2"),
    ({"groups.a.hosts": "n1"}, "groups.a.hosts", "should be a list"),
    ({"ssh.user": "root\nProxyCommand touch x"}, "ssh.user", "letters, digits"),
    ({"ssh.user": "a b"}, "ssh.user", "letters, digits"),
    ({"ssh.user": "\x1b[2J"}, "ssh.user", "letters, digits"),
    ({"ssh.port": 0}, "ssh.port", "at least 1"),
    ({"ssh.port": 65536}, "ssh.port", "at most 65535"),
    ({"ssh.port": "22"}, "ssh.port", "should be a whole number"),
    ({"ssh.key": "$HOME/x"}, "ssh.key", "variables are not expanded"),
    ({"ssh.jump": "bastion"}, "ssh.jump", "USER@HOST"),
    ({"ssh.jump": "a@b,c@d,e@f,g@h,i@j"}, "ssh.jump", "at most 4"),
    ({"ssh.connect_timeout": 10}, "ssh.connect_timeout", "such as 30s"),
    ({"ssh.connect_timeout": "0s"}, "ssh.connect_timeout", "more than 0"),
    ({"ssh.command_timeout": "366d"}, "ssh.command_timeout", "at most 365d"),
    ({"ssh.client_config": "yes"}, "ssh.client_config", "true or false"),
    ({"mirrors.apt": "deb http://h/ bookworm main"}, "mirrors.apt", "uris"),
    ({"mirrors.apt": [ONE_APT | {"trusted": True}]}, "mirrors.apt[0].trusted", "known here: uris"),
    ({"mirrors.apt": [ONE_APT | {"uris": ["file:///x"]}]}, "mirrors.apt[0].uris[0]", "https://"),
    ({"mirrors.apt_proxy": "http://u:p@h:1"}, "mirrors.apt_proxy", "without credentials"),
    ({"secrets.t": {}}, "secrets.t", "exactly one of the keys env and file"),
    ({"secrets.t": {"env": "AWS_KEY"}}, "secrets.t.env", "begins with SLIPWAY_"),
    ({"service.api_tokens": ["t"]}, "service.api_tokens[0]", "known here: none"),
    ({"service.port": 70000}, "service.port", "at most 65535"),
    ({"service.ipv6": "on"}, "service.ipv6", "true or false"),
    ({"service.tls": {"kind": "files"}}, "service.tls", "needs certificate and key"),
    ({"service.tls": {"names": ["h"]}}, "service.tls", "kind: plain does not read"),
    ({"service.memory_max": "8GB"}, "service.memory_max", "such as 512MiB"),
    ({"service.memory_max": 8}, "service.memory_max", "such as 512MiB"),
    ({"service.memory_max": "infinity"}, "service.memory_max", "such as 512MiB"),
    ({"service.memory_max": "50%"}, "service.memory_max", "such as 512MiB"),
    ({"service.memory_max": "1KiB"}, "service.memory_max", "at least 268435456"),
    ({"service.memory_max": "512MiB"}, "service", "set state_max to less"),
    ({"service.tmp_max": "9GiB"}, "service", "set tmp_max to less"),
    ({"service.state_max": "0B"}, "service.state_max", "at least 1048576"),
    ({"service.tasks_max": 1}, "service.tasks_max", "at least 16"),
    ({"service.tasks_max": 5_000_000}, "service.tasks_max", "at most 4194304"),
    ({"service.watchdog": "10ms"}, "service.watchdog", "at least 1"),
    ({"service.start_timeout": "infinity"}, "service.start_timeout", "such as 30s"),
    ({"service.cors_origins": ["*"]}, "service.cors_origins[0]", "https://HOST"),
    ({"service.monitoring_networks": ["10.0.0.1/8"]}, "service.monitoring_networks[0]", "10.0.0.0"),
    ({"service.vllm_args": ["--uds=/x"]}, "service.vllm_args[0]", "--uds"),
    ({"release.waves": [0]}, "release.waves[0]", "a number of hosts or a percentage"),
    ({"release.canary.share_pct": 51}, "release.canary.share_pct", "at most 50"),
    ({"release.canary.give_up_after": "1s"}, "release.canary", "not be shorter than duration"),
    ({"release.canary.interval": "61s"}, "release", "not be longer than canary.duration"),
    ({"release.gates.http_request_error_rate.max": 0.05},
     "release.gates.http_request_error_rate.max", "a percentage, such as 5%"),
    ({"release.hooks": [{"when": "before", "phase": "abort", "run": ["hooks/x"]}]},
     "release.hooks[0]", "use when: after"),
    ({"release.hooks": [{"when": "after", "phase": "abort", "run": ["hooks/x", "\x07"]}]},
     "release.hooks[0].run[1]", "one line of visible text"),
    ({"release.notify": [{"webhook": "http://h/x"}]}, "release.notify[0].webhook", "https://HOST"),
    ({"state": {"kind": "etcd"}}, "state", "needs endpoints"),
    ({"state": ETCD | {"user": "x"}}, "state", "user and password belong together"),
    ({"signing.identity": "a b"}, "signing.identity", "one word of letters"),
    ({"signing.key": "%d/id"}, "signing.key", "should be a path"),
    ({"storage.root": "/etc/x"}, "storage.root", "a data disk, such as /data/slipway"),
    ({"storage.root": "/data/../etc"}, "storage.root", "an absolute path on hosts"),
    ({"hosts.n1.vars": {"x": "a\nb"}}, "hosts.n1.vars.x", "one line of visible text"),
    # GPUs and drivers that contradict the row and the engine.
    ({"gpu.count": 1}, "gpu", "has no effect: service.device is cpu"),
    ({"driver.version": "580.95.05"}, "driver", "has no effect: service.device is cpu"),
    (GPU | {"service.gpus": 8, "gpu.count": 4}, "gpu.count", "service.gpus is 8"),
    (GPU | {"driver.version": "470.57.02"}, "driver.version", "driver: 580.65.06 or later"),
    (GPU | {"driver.version": "550.54.15"}, "driver.version", "to 580.65.06 or later"),
    # Files and variables that it names.
    ({"secrets.t": {"env": "SLIPWAY_NOT_SET"}, "service.api_tokens": ["t"]},
     "secrets.t", "SLIPWAY_NOT_SET"),
    ({"secrets.t": {"file": "/nowhere/slipway_t"}, "service.api_tokens": ["t"]},
     "secrets.t", "/nowhere/slipway_t"),
    ({"signing.allowed_signers": "/nowhere"}, "signing.allowed_signers", "one line a signer"),
    ({"signing.allowed_signers": "/dev/null"}, "signing.allowed_signers", "one line a signer"),
]  # fmt: skip
# Lines after a valid file, of which YAML 1.1 makes something else than its author meant.
ODD = [
    ("ssh: {port: 0022}", "ssh.port", DECIMAL),
    ("ssh: {port: 22:22}", "ssh.port", DECIMAL),
    ("ssh: {port: 0x16}", "ssh.port", DECIMAL),
    ("ssh: {port: 0o17}", "ssh.port", DECIMAL),
    ("ssh: {port: 2_222}", "ssh.port", DECIMAL),
    ("ssh: {port: 22.0}", "ssh.port", "should be a whole number"),
    ("ssh: {port: 1e3}", "ssh.port", DECIMAL),
    ("ssh: {port: .inf}", "ssh.port", "should be a whole number"),
    ("ssh: {port: true}", "ssh.port", "should be a whole number"),
    ("ssh: {port: 2026-01-01}", "ssh.port", DECIMAL),
    ("release: {keep: 03}", "release.keep", DECIMAL),
    ("release: {keep: 1:30}", "release.keep", DECIMAL),
    ("release: {canary: {duration: 1:30}}", "release.canary.duration", "such as 30s"),
    ("ssh: {client_config: yes}", "ssh.client_config", "true or false"),
    ("ssh: {client_config: off}", "ssh.client_config", "true or false"),
    ("ssh: {user: 1000}", "ssh.user", "should be text"),
    ("ssh: {user: 1000, user: 1001}", "ssh.user", "duplicate key, on line"),
    ("ssh: {user: ~}", "ssh.user", "should be text"),
    ("ssh: !!python/name:os.system x", "ssh", "remove the tag"),
    ('ssh: {user: "\\UFFFFFFFF"}', "not YAML", "edit line"),
    ("ssh: !!omap [port: 1]", "ssh", "remove the tag"),
    ("groups: {no: {hosts: [n1]}}", "groups.no", "put it in quotes"),
    ("groups: {2026-01-01: {hosts: [n1]}}", "groups.2026-01-01", "put it in quotes"),
    ("groups: {22:10: {hosts: [n1]}}", "groups", "put it in quotes"),
]
# A mapping in the place of each value.
GENERATED = sorted({format_path(concrete(path)): concrete(path) for path in leaves()}.items())


@pytest.fixture
def connections(monkeypatch):
    """
    Return the list of attempts to connect to a host, in any thread; none gets out.
    """
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("SLIPWAY_NOT_SET", raising=False)
    return attempts


@pytest.fixture
def refused(inv, tmp_path, connections):
    """
    Return a function that gives `inv provision` a fleet file, and returns what it printed.
    """

    def run_it(text):
        path = tmp_path / "bad.yml"
        path.write_text(text)
        code, _, err = inv("provision", "--check", "--hosts", str(path))
        assert connections == []
        assert code == 2, err
        assert "Traceback" not in err
        assert "fix: " in err
        return err

    return run_it


def as_yaml(changes):
    return yaml_text(fleet_data(BASE | changes))


@pytest.mark.parametrize(("changes", "key", "remedy"), CHANGED)
def test_a_wrong_value_is_refused_with_key_and_remedy(refused, changes, key, remedy):
    told = refused(as_yaml(changes))
    assert f"{key}: " in told or f"{key} " in told
    assert remedy in told


@pytest.mark.parametrize(("line", "key", "remedy"), ODD)
def test_what_versions_of_yaml_read_differently_is_refused(refused, line, key, remedy):
    """
    Where a number or a boolean belongs; where text belongs it is text.
    """
    told = refused(as_yaml({}) + line + "\n")
    assert "bad.yml" in told
    assert key in told
    assert remedy in told


@pytest.mark.parametrize("path", [path for _, path in GENERATED], ids=format_path)
def test_a_mapping_in_the_place_of_a_value_is_refused(refused, path):
    """
    Every key of the schema; the error names it.
    """
    told = refused(yaml_text(with_value(EXAMPLE, path, {"x": {}})))
    assert "bad.yml" in told
    assert format_path(path) in told


def test_there_are_a_hundred_and_more():
    assert len(CHANGED) + len(ODD) >= 90
    assert len(GENERATED) >= 90


def test_a_valid_file_does_reach_the_transport(inv, tmp_path, connections):
    """
    Negative control: the attempt would be noticed.
    """
    signers = tmp_path / "signers"
    key = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    signers.write_text(f'ops@example.com namespaces="slipway-bundle" ssh-ed25519 {key}\n')
    path = tmp_path / "good.yml"
    path.write_text(as_yaml({"signing.allowed_signers": str(signers)}))
    code, _, _ = inv("provision", "--check", "--hosts", str(path))
    assert code not in (0, 2)
    assert connections


def test_a_check_after_the_first_connection_would_be_noticed(refused, connections, monkeypatch):
    """
    Negative control: of what the fleet file names on this machine.
    """

    class Connecting(Survey):
        def __init__(self, hosts, report):
            super().__init__(hosts, report)
            until_s = time.monotonic() + 30.0
            while not connections and time.monotonic() < until_s:
                time.sleep(0.01)

    monkeypatch.setattr(run, "check_inputs", lambda fleet, env: None)
    monkeypatch.setattr(run, "Survey", Connecting)
    with pytest.raises(AssertionError):
        refused(as_yaml({"signing.allowed_signers": "/nowhere"}))
