"""
The program that everything else asks for on a host, and what it is told about the host.
"""

import json

from deploy.host import layout
from deploy.provision.requirements import AnyRequirement, NobodyReleases
from deploy.provision.resources import AnyResource, File
from deploy.provision.spec import Goal


def requirements(goal: Goal) -> list[AnyRequirement]:
    return [NobodyReleases(path=layout.LEASE)]


def install(goal: Goal) -> list[AnyResource]:
    return [File(path=layout.HOST_PROGRAM, content=goal.host_tool, mode="0755")]


def configure(goal: Goal) -> list[AnyResource]:
    return [
        File(path=layout.HOST_CONFIG, content=host_config(goal).encode()),
        File(path=layout.ALLOWED_SIGNERS, content=goal.allowed_signers.encode()),
    ]


def activate(goal: Goal) -> list[AnyResource]:
    return []


def host_config(goal: Goal) -> str:
    """
    Return /etc/slipway/host.json.
    """
    slots = {
        slot: {"unit": layout.unit(slot), "socket": layout.runtime_socket(slot)}
        for slot in layout.SLOTS
    }
    found = {
        "host": goal.host.name,
        "row": goal.row.name,
        "port": goal.service.port,
        "python": goal.row.python,
        "locks": [goal.lock.digest],  # venvs that `retire` leaves alone
        "backend": layout.BACKEND,
        "haproxy_socket": layout.HAPROXY_SOCKET,
        "drain_timeout_s": goal.drain_timeout_s,
        "start_timeout_s": goal.service.start_timeout,
        "slots": slots,
    }
    return json.dumps(found, indent=2, sort_keys=True) + "\n"
