"""
HAProxy: listens on the public port and splits the traffic between the slots.
"""

import hashlib

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, PortFree
from deploy.provision.resources import AnyResource, Directory, EnabledService, File
from deploy.provision.spec import HostSpec
from deploy.templating import render
from runtime import contract

CONFIG = "/etc/haproxy/haproxy.cfg"
MAX_CONNECTIONS = 4096
_NO_DIGEST = "0" * 16  # in the text that the digest is computed of
_MARGIN_S = 15.0  # added to the drain timeout, before the old worker is killed


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return [PortFree(port=spec.service.port)]


def install(spec: HostSpec) -> list[AnyResource]:
    # /run is empty after a boot: tmpfiles.d makes the directory again before HAProxy starts.
    tmpfiles = render("slipway.tmpfiles", run=layout.RUN).encode()
    return [
        File(path="/etc/tmpfiles.d/slipway.conf", content=tmpfiles),
        Directory(path=layout.RUN),
    ]


def configure(spec: HostSpec) -> list[AnyResource]:
    return [File(path=CONFIG, content=config(spec).encode(), check="haproxy -q -c -f {}")]


def activate(spec: HostSpec) -> list[AnyResource]:
    return [
        EnabledService(
            unit=layout.HAPROXY_UNIT,
            socket=layout.HAPROXY_SOCKET,
            description=f"slipway {_digest(spec)}",
        )
    ]


def config(spec: HostSpec) -> str:
    """
    Return the text of /etc/haproxy/haproxy.cfg, with its own digest as description.
    """
    return _render(spec, _digest(spec))


def _digest(spec: HostSpec) -> str:
    return hashlib.sha256(_render(spec, _NO_DIGEST).encode()).hexdigest()[:16]


def _render(spec: HostSpec, digest: str) -> str:
    return render(
        "haproxy.cfg",
        config_digest=digest,
        group=layout.USER,
        maxconn=MAX_CONNECTIONS,
        stats_socket=layout.HAPROXY_SOCKET,
        state_file=layout.HAPROXY_STATE,
        hard_stop_after_s=round(spec.drain_timeout_s + _MARGIN_S),
        port=spec.service.port,
        backend=layout.BACKEND,
        readyz=contract.READYZ,
        slots=[{"name": s, "socket": layout.runtime_socket(s)} for s in layout.SLOTS],
    )
