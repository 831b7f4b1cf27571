"""
What ~/.ssh/config says about the hosts of a fleet, read by ssh(1) itself: `ssh -G`.

Only the file of the user who runs the command is read, and only where the fleet file asks for it:
it may name commands (`Match exec`), which a fleet file must not.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.errors import InventoryError
from deploy.foreign_text import visible
from deploy.inventory.names import parse_address
from deploy.inventory.schema import Fleet, Hop, Host

_CONFIG = Path("~/.ssh/config")
# Wider than the fleet file's: directories have users such as ann@example.com and CORP\ann.
_USER = re.compile(r"[^-\s\"'][^\s\"']{0,127}")
# A name of the file alone, such as bastion_prod; the address that it stands for is checked.
_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_TIMEOUT_S = 30.0
_HOPS_MAX = 8
_AT_ONCE = 8


def with_client_config(fleet: Fleet) -> Fleet:
    """
    Return *fleet* with what ~/.ssh/config says about each host where the fleet file asks for it.

    Raises:
        InventoryError: ssh(1) refuses the file, or it uses what is not supported: ProxyCommand, a
            host that is a jump host of itself, another agent than that of SSH_AUTH_SOCK.
    """
    asking = [host for host in (*fleet.hosts, *fleet.others) if host.ssh.client_config]
    if not asking:
        return fleet
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        routed = dict(zip((h.name for h in asking), pool.map(_with_route, asking), strict=True))
    return fleet.model_copy(
        update={
            "hosts": tuple(routed.get(host.name, host) for host in fleet.hosts),
            "others": tuple(routed.get(host.name, host) for host in fleet.others),
        }
    )


def _with_route(host: Host) -> Host:
    ssh, is_open = host.ssh, host.open_keys
    user = None if "user" in is_open else ssh.user
    port = None if "port" in is_open else ssh.port
    jumps = None if "jump" in is_open or ssh.jump is None else ssh.jump
    chain = None if jumps is None else [(j.user, j.address, j.port) for j in jumps]
    route = _route(host.name, user, host.address, port, chain, 0)
    # What the fleet file sets holds for each connection, as without ~/.ssh/config.
    changes: dict[str, object] = {}
    if "key" not in is_open and ssh.key is not None:
        changes |= {"keys": (ssh.key,), "only_keys": True}
    if "known_hosts" not in is_open:
        changes["known_hosts"] = (ssh.known_hosts,)
    route = [hop.model_copy(update=changes) for hop in route]
    last = route[-1]
    ssh = ssh.model_copy(update={"user": last.user, "port": last.port})
    return host.model_copy(update={"ssh": ssh, "route": tuple(route)})


_Target = tuple[str | None, str, int | None]  # user, alias, port


def _route(
    name: str,
    user: str | None,
    alias: str,
    port: int | None,
    chain: Sequence[_Target] | None,
    depth: int,
) -> list[Hop]:
    """
    Return the connections that lead to *alias*, as ssh(1) makes them.

    Args:
        chain: Jump hosts; None: those of the configuration.
    """
    if depth > _HOPS_MAX:
        raise _refused(name, "ProxyJump", f"more than {_HOPS_MAX} hops: a loop")
    settings = _settings(name, user, alias, port)
    if chain is None:
        jumps = _first(settings, "proxyjump")
        chain = [] if jumps in ("", "none") else [_target(name, j) for j in jumps.split(",")]
        if chain and chain[-1][1] == alias:  # ssh(1) does not go through a host to itself
            chain = []
    if _first(settings, "proxycommand") not in ("", "none"):
        raise _refused(name, "ProxyCommand", "slipway starts no commands for a connection")
    agent = _first(settings, "identityagent")
    if agent not in ("", "SSH_AUTH_SOCK", os.environ.get("SSH_AUTH_SOCK", "")):
        raise _refused(name, "IdentityAgent", f"{agent}: only the agent of SSH_AUTH_SOCK is used")
    if _first(settings, "revokedhostkeys") not in ("", "none"):
        raise _refused(name, "RevokedHostKeys", "revoked keys stand in known_hosts (@revoked)")
    route: list[Hop] = []
    for number, (hop_user, hop_alias, hop_port) in enumerate(chain):
        # Only the first one may have jump hosts of its own.
        own: Sequence[_Target] | None = None if number == 0 else ()
        route += _route(name, hop_user, hop_alias, hop_port, own, depth + 1)
    return [*route, _hop(name, settings)]


def _hop(name: str, settings: Mapping[str, Sequence[str]]) -> Hop:
    address, port = _first(settings, "hostname"), int(_first(settings, "port"))
    try:
        parse_address(address)
    except ValueError as error:
        raise _refused(name, "HostName", f"{address} {error}") from None
    user = _first(settings, "user")
    if not _USER.fullmatch(user) or not user.isprintable():
        raise _refused(name, "User", f"{visible(user, limit=80)!r} is not the name of a user")
    wanted = [_identity(name, path, settings) for path in settings.get("identityfile", ())]
    keys = tuple(path for path in wanted if path.exists())
    only_keys = _first(settings, "identitiesonly") == "yes"
    if only_keys and not keys:
        shown = ", ".join(map(str, wanted)) or "none is named"
        raise _refused(name, "IdentitiesOnly", f"no IdentityFile exists: {shown}")
    files = f"{_first(settings, 'userknownhostsfile')} {_first(settings, 'globalknownhostsfile')}"
    known = tuple(Path(path).expanduser() for path in files.split() if path != "none")
    alias = _first(settings, "hostkeyalias")
    return Hop(
        user=user,
        address=address,
        port=port,
        keys=keys,
        only_keys=only_keys,
        known_hosts=known or (Path("~/.ssh/known_hosts").expanduser(),),
        known_as=(alias, 22) if alias not in ("", "none") else (address, port),
    )


def _identity(name: str, text: str, settings: Mapping[str, Sequence[str]]) -> Path:
    """
    Return the path of an IdentityFile; `ssh -G` prints its tokens as they are (ssh_config(5)).
    """
    values = {
        "%": "%",
        "d": str(Path.home()),
        "h": _first(settings, "hostname"),
        "p": _first(settings, "port"),
        "r": _first(settings, "user"),
        "u": os.environ.get("LOGNAME") or os.environ.get("USER") or str(os.getuid()),
    }

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise _refused(name, "IdentityFile", f"{text}: {match[0]} is not expanded here")
        return values[match[1]]

    return Path(re.sub(r"%(.?)", value, text)).expanduser()


def _target(name: str, text: str) -> _Target:
    user, at, rest = text.removeprefix("ssh://").rpartition("@")
    host, colon, port = rest.rpartition(":")
    if not colon or rest.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = rest, ""
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not _ALIAS.fullmatch(host):
            parse_address(host)
        return (user if at else None), host, (int(port) if port else None)
    except ValueError:
        raise _refused(name, "ProxyJump", f"{text} is not [USER@]HOST[:PORT]") from None


def _settings(name: str, user: str | None, alias: str, port: int | None) -> dict[str, list[str]]:
    """
    Return what ssh(1) would do for *alias*: lower-case keywords with their values.
    """
    config = _CONFIG.expanduser()
    argv = ["ssh", "-G", "-F", str(config if config.exists() else "none")]
    argv += ["-l", user] if user is not None else []
    argv += ["-p", str(port)] if port is not None else []
    try:
        done = subprocess.run(
            [*argv, "--", alias],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        raise _refused(name, "ssh", "there is no ssh on this machine to read it") from None
    except subprocess.TimeoutExpired:
        raise _refused(name, "ssh -G", f"no end within {_TIMEOUT_S:.0f} s (Match exec?)") from None
    if done.returncode != 0:
        # The first line names line and keyword of the file; the last one only counts.
        first = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _refused(name, "ssh -G", visible(first[0]))
    settings: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        keyword, _, value = line.partition(" ")
        settings.setdefault(keyword, []).append(value)
    return settings


def _first(settings: Mapping[str, Sequence[str]], keyword: str) -> str:
    return next(iter(settings.get(keyword, ())), "")


def _refused(name: str, what: str, why: str) -> InventoryError:
    return InventoryError(
        f"{name}: ~/.ssh/config: {what} cannot be used",
        why=why,
        fix=f"set ssh.jump, ssh.key or ssh.user of {name} in the fleet file, or "
        "ssh.client_config: false",
    )
