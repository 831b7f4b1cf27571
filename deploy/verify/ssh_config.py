"""
The ssh_config for testinfra: the settings of the fleet, one shared connection a host.  Pure.
"""

from pathlib import Path

from deploy.inventory.schema import Fleet, Host


def ssh_config(fleet: Fleet, control: Path) -> str:
    """
    Return the configuration of OpenSSH for *fleet*.

    Args:
        control: Directory for the sockets of shared connections; at most 60 bytes long.
    """
    parts = [_host(host, control) for host in fleet.hosts]
    jumps = {str(host.ssh.jump): host for host in fleet.hosts if host.ssh.jump is not None}
    parts += [_jump(jump, host) for jump, host in sorted(jumps.items())]
    return "\n".join(parts)


def jump_alias(jump: str) -> str:
    """
    Return the host alias of *jump* in the configuration.
    """
    return "jump-" + jump.replace("@", "-at-").replace(":", "-port-")


def _host(host: Host, control: Path) -> str:
    ssh = host.ssh
    lines = [
        f"Host {host.name}",
        f"HostName {host.address}",
        f"HostKeyAlias {host.address if ssh.port == 22 else f'[{host.address}]:{ssh.port}'}",
        f"User {ssh.user}",
        f"Port {ssh.port}",
        *_common(host),
        # One login a host; further commands share its connection.
        "ControlMaster auto",
        f"ControlPath {control}/%C",
        "ControlPersist 60",
    ]
    if ssh.jump is not None:
        lines.append(f"ProxyJump {jump_alias(ssh.jump)}")
    return _block(lines)


def _jump(jump: str, host: Host) -> str:
    user, _, address = jump.partition("@")
    name, _, port = address.partition(":")
    return _block(
        [
            f"Host {jump_alias(jump)}",
            f"HostName {name}",
            f"User {user}",
            f"Port {port or 22}",
            *_common(host),
        ]
    )


def _common(host: Host) -> list[str]:
    ssh = host.ssh
    lines = [
        "StrictHostKeyChecking yes",
        f'UserKnownHostsFile "{ssh.known_hosts}"',
        "GlobalKnownHostsFile /dev/null",
        "BatchMode yes",
        "LogLevel ERROR",
        f"ConnectTimeout {max(1, round(ssh.connect_timeout))}",
        f"ServerAliveInterval {max(1, round(ssh.keepalive))}",
        "ServerAliveCountMax 3",
    ]
    if ssh.key is not None:
        lines += [f'IdentityFile "{ssh.key}"', "IdentitiesOnly yes"]
    return lines


def _block(lines: list[str]) -> str:
    return "\n  ".join(lines) + "\n"
