"""
Where things lie on a host.  Nouns only; templates and remote commands are given these values.
"""

from typing import Literal

Slot = Literal["blue", "green"]
SLOTS: tuple[Slot, Slot] = ("blue", "green")

OPT = "/opt/slipway"
BIN = f"{OPT}/bin"
UV = f"{BIN}/uv"
HOST_TOOL = f"{BIN}/slipway-host.pyz"  # deploy/host, run by the host's own python3
WHEELHOUSE = f"{OPT}/wheelhouse"  # WHEELHOUSE/<wheel file name>, sha256-checked, shared by locks
VENVS = f"{OPT}/venvs"  # VENVS/<lock digest>
RELEASES = f"{OPT}/releases"  # RELEASES/<bundle digest>
STATE = "/var/lib/slipway"
MODELS = f"{STATE}/models"  # MODELS/<manifest digest>; MODELS/blobs/<sha256>
INCOMING = f"{STATE}/incoming"  # uploads, before they are verified
SLOT_LINKS = f"{STATE}/slots"  # SLOT_LINKS/<slot> -> RELEASES/<bundle digest>
JOURNAL = f"{STATE}/journal.jsonl"
LEASE = f"{STATE}/lease.json"
HAPROXY_STATE = f"{STATE}/haproxy.state"
ETC = "/etc/slipway"
RUNTIME_CONFIG = f"{ETC}/runtime.yml"  # 0640 root:slipway
ENVIRONMENT = f"{ETC}/environment"  # 0600 root: secrets, read by systemd
ALLOWED_SIGNERS = f"{ETC}/allowed_signers"
HOST_CONFIG = f"{ETC}/host.json"  # what HOST_TOOL needs to know: public port, slots, sockets
RUN = "/run/slipway"
HAPROXY_SOCKET = f"{RUN}/haproxy.sock"
USER = "slipway"  # the runtime's user and group
UNIT = "slipway-runtime@{slot}.service"
HAPROXY_UNIT = "haproxy.service"  # Debian's own; its configuration is ours
BACKEND = "runtime"  # HAProxy backend; its servers are named like the slots


def unit(slot: str) -> str:
    """
    Return the systemd unit of *slot*.
    """
    return UNIT.format(slot=slot)


def runtime_socket(slot: str) -> str:
    """
    Return the Unix socket that the runtime of *slot* listens on.
    """
    return f"{RUN}/{slot}/runtime.sock"
