"""
All that slipway makes of a fleet's values, and what each target reads in it.

`sinks` makes the files, arguments and documents; `misread` compares what their own languages read
in them with the values of the fleet.
"""

import functools
import json
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from fabric import Config, Connection

from deploy.inventory.host_document import host_document, host_of
from deploy.inventory.schema import Tls
from deploy.provision import haproxy, runtime_unit
from deploy.provision.apt_packages import Packages
from deploy.provision.apt_sources import AptSources, OsRelease
from deploy.provision.concerns import plan_resources
from deploy.provision.driver.planner import plan_driver
from deploy.provision.resources import File
from deploy.verify.report import CONNECTION
from tests.unit.deploy.provision.builders import DEBIAN, make_spec
from tests.unit.deploy.provision.driver.builders import FINGERPRINT, make_facts, make_wish

NOBLE = OsRelease(os_id="ubuntu", codename="noble")
UNITS = re.compile(r"^[A-Z][A-Za-z]+=")


def files(fleet):
    """
    Return the text of every file that provisioning writes for *fleet*, by path.
    """
    resources = _resources(fleet)
    everything = (*resources.placed, *resources.running)
    texts = {r.path: r.content.decode() for r in everything if isinstance(r, File)}
    sources = (r for r in everything if isinstance(r, AptSources) and r.sources)
    return texts | {r.path: r.text(DEBIAN) for r in sources}


def driver(fleet):
    """
    Return the files and the packages of the driver of *fleet* on a host with a GPU.
    """
    wish = make_wish(fleet.driver.version, source="nvidia").model_copy(
        update={"section": fleet.driver.model_copy(update={"fingerprint": FINGERPRINT})}
    )
    plan = plan_driver(wish, make_facts("noble"))
    contents = [getattr(step, "content", b"").decode("latin-1") for step in plan.steps]
    sources = [step.sources.text(NOBLE) for step in plan.steps if hasattr(step, "sources")]
    return "\n".join([*contents, *sources, *plan.install.packages])


def transaction(fleet):
    """
    Return the transaction that installs the packages of *fleet* on a bare host.
    """
    [packages] = [r for r in _resources(fleet).placed if isinstance(r, Packages)]
    return packages.transaction(None)


def _resources(fleet):
    root = fleet.storage.root
    settings = {"mirrors": fleet.mirrors, "tokens": ("token",), "storage_root": root}
    spec = make_spec(**settings, **dict(fleet.service))
    object.__setattr__(spec, "release", fleet.release)
    return plan_resources(spec)


def misread(fleet, texts):
    """
    Return what a target reads that the fleet does not say: empty if every value is inert.
    """
    found = [
        *_apt(fleet, texts),
        *_runtime(fleet, texts),
        *_shape(fleet, texts),
        *_connections(fleet),
    ]
    return [entry for entry in found if entry is not None]


def _apt(fleet, texts):
    conf = texts["/etc/apt/apt.conf.d/90slipway"]
    lines = [line for line in conf.splitlines() if not line.startswith("//")]
    read = dict(re.fullmatch(r'([A-Za-z0-9:.-]+) "([^"\\%]*)";', line).groups() for line in lines)
    proxies = {v for k, v in read.items() if k.endswith("::Proxy")}
    yield _differs("apt proxy", proxies, {fleet.mirrors.apt_proxy} - {None})
    direct = {k.split("::")[3] for k, v in read.items() if v == "DIRECT"}
    hosts = {
        *fleet.mirrors.no_proxy,
        *(urlsplit(u).hostname for s in fleet.mirrors.apt for u in s.uris),
    }
    yield _differs("no proxy", direct - hosts, set())
    yield _differs("apt settings", len(lines), len(read))
    sources = texts.get("/etc/apt/sources.list.d/slipway.sources", "")
    stanzas = [s for s in sources.split("\n\n")[1:] if s.strip()]
    wanted = [
        {"Types": "deb", "URIs": " ".join(s.uris), "Suites": " ".join(s.suites),
         "Components": " ".join(s.components)}
        | ({"Signed-By": s.signed_by} if s.signed_by else {})
        for s in fleet.mirrors.apt
    ]  # fmt: skip
    fields = [dict(line.split(": ", 1) for line in s.splitlines() if line) for s in stanzas]
    yield _differs("apt sources", fields, wanted)


def _runtime(fleet, texts):
    document = _yaml(texts["/etc/slipway/runtime.yml"])
    service = fleet.service
    yield _differs("origins", document["cors_origins"], list(service.cors_origins))
    yield _differs("timeout", document["request_timeout_s"], service.request_timeout)
    yield _differs("wait", document["max_wait_s"], service.options.max_wait_s)
    if service.options.engine == "vllm":
        args = document.get("vllm_args", [])
        yield _differs("vllm_args", args, list(service.options.vllm_args))


@functools.lru_cache
def _yaml(text):
    return yaml.safe_load(text)


def _shape(fleet, texts):
    """
    Yield each file whose lines begin with other words than those of the template.
    """
    haproxy_text = texts["/etc/haproxy/haproxy.cfg"]
    words = _first_words(haproxy_text)
    origins = fleet.service.cors_origins
    yield _differs("haproxy.cfg", words, _usual_words(bool(origins), fleet.service.tls.kind))
    named = re.findall(r"\{ req\.hdr\(origin\) (.*) \}$", haproxy_text, re.MULTILINE)
    read = [shlex.split(line) for line in named]
    yield _differs("origins in haproxy.cfg", read, [[*origins]] if origins else [])
    unit = texts["/etc/systemd/system/slipway-runtime@.service"].replace("\\\n", " ")
    for line in unit.splitlines():
        if line and not line.startswith(("#", "[")) and not UNITS.match(line):
            yield f"the unit has the line {line!r}"
    commands, usual = (re.findall(r"^Exec\w+=", u, re.MULTILINE) for u in (unit, _usual_unit()))
    yield _differs("commands of the unit", commands, usual)
    for path, text in texts.items():
        if not text.isascii() or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
            yield f"{path} has a character that is no visible ASCII"


def _first_words(text):
    return [line.split()[0] for line in text.splitlines() if line.strip()]


@functools.cache
def _usual_words(has_origins, kind):
    origins = ("https://example.com",) if has_origins else ()
    tls = Tls.model_construct(kind=kind)
    return _first_words(haproxy.config(make_spec(cors_origins=origins, tls=tls)))


@functools.cache
def _usual_unit():
    return runtime_unit.unit(make_spec()).replace("\\\n", " ")


def _connections(fleet):
    names = ",".join(f"{CONNECTION}://{host.name}" for host in fleet.hosts)
    yield _differs("hosts of pytest", names.count("://"), len(fleet.hosts))
    yield _differs("an option for pytest", names.startswith("-"), False)
    for host in fleet.hosts:
        sent = host_of(json.loads(json.dumps(host_document(host))))
        yield _differs("document of the host", (sent.address, sent.ssh), (host.address, host.ssh))
        hops = [(host.address, host.ssh.user, host.ssh.port)]
        hops += [(jump.address, jump.user, jump.port) for jump in host.ssh.jump or ()]
        for address, user, port in hops:
            yield _differs("connection", _connected(address, user, port), (address, user, port))
    signing = fleet.signing
    paths = [signing.key, signing.allowed_signers, *(h.ssh.known_hosts for h in fleet.hosts)]
    paths += [secret.file for secret in fleet.secrets.values() if secret.file is not None]
    for path in paths:
        if not Path(path).is_absolute() or not str(path).isprintable():
            yield f"{path} is not absolute, or has an invisible character"


@functools.lru_cache
def _connected(address, user, port):
    """
    Return address, user and port as the library that connects reads them.
    """
    connection = Connection(address, user=user, port=port, config=Config(lazy=True))
    return connection.host, connection.user, connection.port


def _differs(what, read, wanted):
    return None if read == wanted else f"{what}: read {read!r}, the fleet says {wanted!r}"
