"""
HAProxy: owns the public port, splits the traffic between the slots.
"""

import hashlib

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, PortFree
from deploy.provision.resources import AnyResource, Directory, File, Service
from deploy.provision.spec import Goal
from deploy.templating import render
from runtime import contract

CONFIG = "/etc/haproxy/haproxy.cfg"
MAX_CONNECTIONS = 4096
_MARGIN_S = 15.0  # what a drain may take longer than it was given


def requirements(goal: Goal) -> list[AnyRequirement]:
    return [PortFree(port=goal.service.port)]


def install(goal: Goal) -> list[AnyResource]:
    # /run is empty after a boot: the first file makes the directory again, before HAProxy starts.
    tmpfiles = render("slipway.tmpfiles", run=layout.RUN).encode()
    return [
        File(path="/etc/tmpfiles.d/slipway.conf", content=tmpfiles),
        Directory(path=layout.RUN),
    ]


def configure(goal: Goal) -> list[AnyResource]:
    return [File(path=CONFIG, content=config(goal).encode(), check="haproxy -q -c -f {}")]


def activate(goal: Goal) -> list[AnyResource]:
    return [
        Service(
            unit=layout.HAPROXY_UNIT,
            socket=layout.HAPROXY_SOCKET,
            description=f"slipway {_digest(goal)}",
        )
    ]


def config(goal: Goal) -> str:
    """
    Return /etc/haproxy/haproxy.cfg, which carries a digest of itself.
    """
    return _render(goal, _digest(goal))


def _digest(goal: Goal) -> str:
    return hashlib.sha256(_render(goal, "").encode()).hexdigest()[:16]


def _render(goal: Goal, digest: str) -> str:
    return render(
        "haproxy.cfg",
        config_digest=digest,
        group=layout.USER,
        maxconn=MAX_CONNECTIONS,
        stats_socket=layout.HAPROXY_SOCKET,
        state_file=layout.HAPROXY_STATE,
        hard_stop_after_s=round(goal.drain_timeout_s + _MARGIN_S),
        port=goal.service.port,
        backend=layout.BACKEND,
        readyz=contract.READYZ,
        slots=[{"name": s, "socket": layout.runtime_socket(s)} for s in layout.SLOTS],
    )
