"""
Every place where a text of the fleet file becomes text of a file, an argument or a variable.

The table names the sinks of each key.  It must have every text key of the schema, and a new value
of a key must change exactly the sinks that the table names.
"""

import contextlib
import copy
import json
import subprocess
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from deploy.bundle.sign import sign_bundle
from deploy.certificates import acme, certbot, operator_files
from deploy.certificates.wanted import wanted_pairs
from deploy.errors import DeployError
from deploy.inventory.document import format_path
from deploy.inventory.host_document import host_document
from deploy.inventory.load import load_fleet
from deploy.inventory.schema import FleetFile
from deploy.inventory.secrets import SecretValue
from deploy.provision.driver.keyring import read_keyring
from deploy.provision.spec import read_allowed_signers, read_mirrors_ca, resolve_tokens
from deploy.release import hooks, notify
from deploy.transport import ssh
from deploy.verify import child, run
from deploy.versions.matrix import load_matrix
from deploy.wheelhouse.interpreter import archive_places, interpreter_of
from deploy.wiring import state
from tests.unit.deploy.certificates.builders import make_authority
from tests.unit.deploy.inventory import rendered
from tests.unit.deploy.inventory.builders import write_fleet, yaml_text
from tests.unit.deploy.inventory.schema_walk import EXAMPLE, concrete, leaves, mappings, with_value

APT, CONF = "/etc/apt/sources.list.d/slipway.sources", "/etc/apt/apt.conf.d/90slipway"
HAPROXY = "/etc/haproxy/haproxy.cfg"
RUNTIME = "/etc/slipway/runtime.yml"
OPT_MOUNT, STATE_MOUNT = (
    f"/etc/systemd/system/{name}-slipway.mount" for name in ("opt", "var-lib")
)
TOKENS = "/etc/slipway/environment"
CONNECT, HOSTS = "arguments of the SSH connection", "hosts.json of verify"
EXPECTED, PYTEST = "expected.json of verify", "arguments of pytest"
SIGN, SIGNERS = "arguments of ssh-keygen", "the file of signers that is read"
READ_ENV, READ_FILE = "environment variables that are read", "files of secrets that are read"
ETCD = "connections to etcd and keys in it, without the password"
HOOKS, WEBHOOKS = "arguments of hooks", "requests to webhooks, without secrets"
CERTIFICATE = "files of the certificate that are read, and names that it is checked for"
TRANSACTION = "arguments of the transaction of packages"
DRIVER = "files and packages of the driver"
DRIVER_KEYS = "the file of NVIDIA's keys that is read"
MIRRORS_CA = "the file of authorities for mirrors that is read"
CERTBOT = "arguments and environment of certbot"
PYTHONS = "archives of standalone Pythons that are read"
DNS_HOOK = "arguments of the hook for DNS-01 challenges"
NOWHERE = frozenset()  # compared, selected or counted, and never written

# Key, another valid value, the sinks that it reaches.
SINKS = {
    "row": ("torch-2.13-cpu", {EXPECTED}),
    "ssh.user": ("ops", {HOSTS, CONNECT, EXPECTED}),
    "ssh.key": ("/keys/other", {HOSTS, CONNECT}),
    "ssh.known_hosts": ("/keys/known", {HOSTS}),
    "ssh.jump": ("ops@b2.example.com:2200", {HOSTS, CONNECT}),
    "mirrors.apt[0].uris[0]": ("http://m2.example.com/debian", {APT, CONF}),
    "mirrors.apt[0].suites[0]": ("trixie", {APT}),
    "mirrors.apt[0].components[0]": ("contrib", {APT}),
    "mirrors.apt[0].signed_by": ("/etc/apt/keyrings/m2.gpg", {APT}),
    "mirrors.apt_proxy": ("http://p2.example.com:1", {CONF, TRANSACTION}),
    "mirrors.no_proxy[0]": (".m2.example.com", {CONF, TRANSACTION}),
    "mirrors.ca_bundle": ("/keys/mirrors.pem", {MIRRORS_CA}),
    "storage.root": ("/srv/slipway", {OPT_MOUNT, STATE_MOUNT, EXPECTED}),
    "mirrors.python.folder": ("/srv/other", {PYTHONS}),
    "mirrors.python.url": ("http://m2.example.com/python", {PYTHONS}),
    "mirrors.python.archives[0].release": ("3.11.17", {EXPECTED}),
    "mirrors.python.archives[0].path": ("other.tar.gz", {PYTHONS}),
    "mirrors.python.archives[0].sha256": ("a" * 64, {EXPECTED}),
    "secrets.api_token.env": ("SLIPWAY_OTHER", {READ_ENV}),
    "secrets.partner_token.file": ("/slipway/other", {READ_FILE}),
    "service.tls.certificate": ("/keys/tls.pem", {CERTIFICATE}),
    "service.tls.key": ("/slipway/tls.key", {CERTIFICATE}),
    "service.tls.authority": ("/keys/ca.pem", {CERTIFICATE, CERTBOT}),
    "service.tls.names[0]": ("api2.example.com", {CERTIFICATE, CERTBOT}),
    "service.tls.acme.server": ("https://acme2.example.com/dir", {CERTBOT}),
    "service.tls.acme.email": ("other@example.com", {CERTBOT}),
    "service.tls.acme.dns_hook": ("hooks/other", {DNS_HOOK}),
    "service.vllm_args[0]": ("--seed=7", {RUNTIME}),
    "service.cors_origins[0]": ("https://b.example.com:8443", {RUNTIME, HAPROXY}),
    "service.monitoring_networks[0]": ("10.9.0.0/16", {HAPROXY}),
    "service.trusted_proxies[0]": ("10.8.0.7/32", {HAPROXY}),
    "service.api_tokens[0]": ("partner_token", {READ_ENV}),
    "driver.version": ("580.173.02", {DRIVER, EXPECTED}),
    "driver.repository": ("https://m2.example.com/nvidia", {DRIVER}),
    "driver.keyring": ("/keys/nvidia2.gpg", {DRIVER_KEYS}),
    "driver.fingerprint": ("F" * 40, NOWHERE),  # compared with that of the keyring
    "driver.cuda_toolkit": ("12.6", {DRIVER}),
    "driver.cuda_compat": ("13.1", {DRIVER}),
    "release.waves[0]": ("20%", NOWHERE),
    "release.hooks[0].run[0]": ("hooks/other", {HOOKS}),
    "release.notify[0].webhook": ("https://b.example.com/x", {WEBHOOKS}),
    "release.notify[0].headers[0].name": ("X-Key", {WEBHOOKS}),
    "release.notify[0].headers[0].secret": ("partner_token", {READ_ENV, READ_FILE}),
    "state.endpoints[0]": ("https://[2001:db8::2]:2379", {ETCD}),
    "state.ca": ("/keys/ca", {ETCD}),
    "state.cert": ("/keys/cert", {ETCD}),
    "state.key": ("/keys/key", {ETCD}),
    "state.user": ("ops", {ETCD}),
    "state.password": ("partner_token", {READ_ENV, READ_FILE}),
    "state.prefix": ("fleets/inference", {ETCD}),
    "signing.identity": ("ci@example.com", NOWHERE),  # of the manifest: deploy.host.names.Identity
    "signing.key": ("/keys/sign2", {SIGN}),
    "signing.allowed_signers": ("/keys/signers2", {SIGNERS}),
    "groups.canary.hosts[0]": ("gpu-02", NOWHERE),
    "groups.canary.row": ("torch-2.13-cpu", NOWHERE),  # its only host has its own
    "groups.canary.vars.tier": ("gold", NOWHERE),
    "hosts.gpu-01.address": ("fe80::7%eth0", {HOSTS, CONNECT}),
    "hosts.gpu-01.row": ("torch-2.13-cpu", {EXPECTED}),
    "hosts.gpu-01.ssh.user": ("root", {HOSTS, CONNECT, EXPECTED}),
    "hosts.gpu-01.ssh.key": ("/keys/k", {HOSTS, CONNECT}),
    "hosts.gpu-01.ssh.jump": ("ops@[2001:db8::5]:2200", {HOSTS, CONNECT}),
    "hosts.gpu-01.vars.rack": ("b7", NOWHERE),
}  # fmt: skip
NAMED = {
    "hosts": {HOSTS, CONNECT, EXPECTED, PYTEST},
    "hosts.gpu-01.vars": NOWHERE,
    "groups": NOWHERE,
    "groups.canary.vars": NOWHERE,
    "secrets": NOWHERE,
}


def is_text(path):
    """
    Return True if some text is a value of the key; a number or one of a few words is none.
    """
    kind = FleetFile.model_json_schema()
    definitions = kind["$defs"]
    for part in path:
        kind = _inner(kind, definitions)
        if part == 0:
            kind = kind.get("items") or kind["prefixItems"][0]
        elif "properties" in kind and part in kind["properties"]:
            kind = kind["properties"][part]
        else:
            kind = kind["additionalProperties"]
    if "$ref" in kind:  # an enum
        kind = _inner(kind, definitions)
    options = kind.get("anyOf", [kind])
    names = [option for option in options if option.get("type") in ("string", None)]
    return any("enum" not in option and "const" not in option for option in names)


def _inner(kind, definitions):
    if "anyOf" in kind:
        kind = next(k for k in kind["anyOf"] if k.get("type") != "null")
    while "$ref" in kind:
        kind = definitions[kind["$ref"].rpartition("/")[2]]
    return kind


def test_the_table_has_every_text_of_the_schema():
    """
    A new key needs a line that says where its text goes.
    """
    # A wave is a number or a percentage: its validator hides the types.
    texts = {format_path(concrete(p)) for p in leaves() if p[-1] == 0 or is_text(p)}
    assert texts == set(SINKS)
    assert {format_path(concrete(path)) for path in mappings()} == set(NAMED)


@pytest.fixture
def sinks(tmp_path, monkeypatch):
    """
    Return a function that loads a file's data and gives the content of every sink.
    """
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: True)
    return lambda data: _sinks(tmp_path, data, monkeypatch)


def _connections(fleet, monkeypatch):
    made = []

    def record(label, hop, settings, gateway):
        made.append((label, hop.address, hop.user, hop.port, hop.keys))

    with monkeypatch.context() as patch:
        patch.setattr(ssh, "_opened", record)
        for host in fleet.hosts:
            ssh.connect(host)
    return made


def _sinks(folder, data, monkeypatch):
    write_fleet(folder, text=yaml_text(data))
    fleet = load_fleet("test", root=folder)
    found = dict(rendered.files(fleet))
    found[CONNECT] = repr(_connections(fleet, monkeypatch))
    found[HOSTS] = json.dumps([host_document(host) for host in fleet.hosts])
    found[EXPECTED] = json.dumps(run.expectations(fleet))
    found[PYTEST] = repr(_argv_of_pytest(fleet, folder, monkeypatch))
    found[SIGN] = repr(_argv_of_sign(fleet, folder, monkeypatch))
    found[READ_ENV], found[READ_FILE] = (repr(read) for read in _secrets_read(fleet, monkeypatch))
    found[SIGNERS] = _file_read(read_allowed_signers, fleet, monkeypatch)
    found[MIRRORS_CA] = _file_read(read_mirrors_ca, fleet, monkeypatch)
    found[DRIVER_KEYS] = _file_read(read_keyring, fleet, monkeypatch)
    found[DRIVER] = rendered.driver(fleet)
    found[TRANSACTION] = repr(rendered.transaction(fleet).arguments)
    found[HOOKS] = repr(_argvs_of_hooks(fleet, folder, monkeypatch))
    found[WEBHOOKS] = repr(_webhooks(fleet, monkeypatch))
    found[ETCD] = repr(_etcd(fleet, monkeypatch))
    found[CERTIFICATE] = repr(_certificate(fleet, monkeypatch))
    tls = fleet.service.tls
    with_acme = tls.model_copy(update={"kind": "acme"})
    with_acme = fleet.model_copy(
        update={"service": fleet.service.model_copy(update={"tls": with_acme})}
    )
    [order] = acme.orders(with_acme)
    argv = certbot.arguments(tls, acme.certbot_folder(with_acme), order, "hook")
    found[CERTBOT] = repr((argv, certbot.environment({}, tls)))
    mirror = fleet.mirrors.python
    pin = interpreter_of(mirror, load_matrix().row(fleet.hosts[0].row))
    found[PYTHONS] = repr(archive_places(pin, mirror))
    found[DNS_HOOK] = repr(tls.acme.dns_hook)
    return found


def _etcd(fleet, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(state, "resolve_secret", lambda *_, **__: SecretValue("x"))
        store = state.state_store(SimpleNamespace(fleet=fleet, clients={}), None, None, env={})
    return store._etcd._settings, store._state_key


def _certificate(fleet, monkeypatch):
    read = []
    pair = make_authority().issue(["api.example.com"], datetime.now(UTC))
    chain, end, key = pair.pem.reveal().rpartition("-----END CERTIFICATE-----\n")

    def record(path, *_, **__):
        read.append(path)
        return key

    with monkeypatch.context() as patch:
        patch.setattr(operator_files, "_read", lambda path: record(path) and (chain + end).encode())
        patch.setattr(operator_files, "read_private", record)
        trust = lambda _c, _k, authority, names: read.append((authority, names))  # noqa: E731
        patch.setattr(operator_files, "check_trust", trust)
        wanted_pairs(fleet, datetime.now(UTC), is_kept=False)
    return read


def _argvs_of_hooks(fleet, folder, monkeypatch):
    argvs = []

    def popen(argv, **_):
        argvs.append(argv)
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", popen)
        patch.setattr(hooks, "check_program", lambda root, program: argvs.append(program))
        context = {"root": folder, "release": "r1", "fleet": "test", "env": {}}
        clock = SimpleNamespace(utc=lambda: datetime(2026, 1, 1, tzinfo=UTC))
        for hook in fleet.hooks:
            one = hooks.Hooks([hook], **context, report=lambda _: None, clock=clock)
            with contextlib.suppress(DeployError):
                (one.before if hook.when == "before" else one.after)(hook.phase, {})
            one.close()
    return argvs


def _webhooks(fleet, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(notify, "resolve_secret", lambda *_, **__: SecretValue("https://s.invalid/x"))
        targets = notify.resolve_webhooks(fleet, {})
    return [(t.url.reveal(), [name for name, _ in t.headers]) for t in targets]


def _argv_of_pytest(fleet, folder, monkeypatch):
    argvs = []

    def popen(argv, **_):
        argvs.append(argv)
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(child.subprocess, "Popen", popen)
        with pytest.raises(FileNotFoundError):
            child.run_pytest(folder, [host.name for host in fleet.hosts], folder, print, 1.0)
    return argvs


def _argv_of_sign(fleet, folder, monkeypatch):
    argvs = []

    def record(argv, **_):
        argvs.append([word for word in argv if "manifest" not in word])
        raise FileNotFoundError

    (folder / "manifest.json").write_text("{}")
    bundle = SimpleNamespace(
        version="v1", directory=folder / "d", manifest_path=folder / "manifest.json"
    )
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", record)
        patch.setattr("pathlib.Path.is_file", lambda path: path.suffix != ".sig")
        with pytest.raises(DeployError):
            sign_bundle(bundle, key=fleet.signing.key)
    return argvs


def _secrets_read(fleet, monkeypatch):
    variables, files = [], []

    class Environment(dict):
        def get(self, name, default=None):
            variables.append(name)
            return "token"

    def no_file(path, *_):
        files.append(str(path))
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr("deploy.inventory.secrets.os.open", no_file)
        with pytest.raises(DeployError):
            resolve_tokens(fleet, Environment())
        with contextlib.suppress(DeployError):
            notify.resolve_webhooks(fleet, Environment())
        with contextlib.suppress(DeployError):
            state.etcd_settings(fleet, Environment())
    return variables, files


def _file_read(read, fleet, monkeypatch):
    paths = []

    def no_file(path, *_, **__):
        paths.append(str(path))
        raise FileNotFoundError(2, "No such file or directory")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", no_file)
        with pytest.raises(DeployError):
            read(fleet)
    return repr(paths)


BASE = with_value(copy.deepcopy(EXAMPLE), ("service", "engine"), "vllm")


def changed(sinks, data):
    before, after = sinks(BASE), sinks(data)
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


@pytest.mark.parametrize("key", sorted(SINKS))
def test_a_text_reaches_its_sinks_and_no_other(sinks, key):
    """
    Each key of the fleet file, fed with another value.
    """
    value, expected = SINKS[key]
    [path] = [concrete(p) for p in leaves() if format_path(concrete(p)) == key]
    assert changed(sinks, with_value(BASE, path, value)) == set(expected)


@pytest.mark.parametrize("key", sorted(NAMED))
def test_a_name_reaches_its_sinks_and_no_other(sinks, key):
    """
    Names that the operator chooses; the other names stay.
    """
    data = copy.deepcopy(BASE)
    place = data
    for part in key.split("."):
        place = place[part]
    if key == "hosts":
        place["gpu-77"] = {"address": "192.0.2.77"}
    else:
        place["another_1" if key != "groups" else "another-1"] = copy.deepcopy(
            next(iter(place.values()))
        )
    assert changed(sinks, data) == set(NAMED[key])


def test_a_further_sink_would_be_noticed(sinks, monkeypatch):
    """
    Negative control: a document that also takes the user is not in the table.
    """
    real = host_document
    monkeypatch.setattr(run, "expectations", lambda fleet: [real(host) for host in fleet.hosts])
    path = ("ssh", "known_hosts")
    assert changed(sinks, with_value(BASE, path, "/keys/known")) != set(SINKS["ssh.known_hosts"][1])
