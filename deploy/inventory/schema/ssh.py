"""
The key `ssh`, and the way to a host that follows from it.  Pure.
"""

from pathlib import Path

from deploy.inventory.names import FilePath, JumpHosts, UserName
from deploy.inventory.schema.strict import Deadline, Port, Strict


class Ssh(Strict):
    """
    SSH settings of the fleet.  The `ssh` of a host overrides them key by key.
    """

    user: UserName = "root"
    port: Port = 22
    key: FilePath | None = None
    known_hosts: FilePath = Path("~/.ssh/known_hosts").expanduser()
    jump: JumpHosts | None = None
    client_config: bool = False  # the operator's ~/.ssh/config says what the file leaves open
    sudo_password: bool = False  # sudo asks the user for one
    connect_timeout: Deadline = 10.0
    command_timeout: Deadline = 60.0  # for a remote command without a deadline of its own
    keepalive: Deadline = 5.0


class SshOverride(Strict):
    """
    SSH settings of one host; None takes the fleet's value.
    """

    user: UserName | None = None
    port: Port | None = None
    key: FilePath | None = None
    jump: JumpHosts | None = None


class Hop(Strict):
    """
    One SSH connection on the way to a host.

    Attributes:
        keys: Files of private keys; empty: those of the agent and the usual ones of ~/.ssh.
        only_keys: Keys of the agent are used only where they are one of `keys`.
        known_as: Name and port under which known_hosts has its key.
    """

    user: str
    address: str
    port: int
    keys: tuple[Path, ...]
    only_keys: bool
    known_hosts: tuple[Path, ...]
    known_as: tuple[str, int]
