"""
The pytest plugin of `inv verify`: testinfra over our own SSH transport.

One connection a host, opened by the worker that runs its assertions.  A host that cannot be
reached, or is lost, fails each of its remaining assertions at once.
"""

import json
import os
import secrets
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult
from xdist.scheduler import LoadScopeScheduling

from deploy.errors import DeployError
from deploy.inventory.host_document import host_of
from deploy.transport.ssh import SshTransport
from deploy.transport.sudo import (
    ATTEMPTS,
    reads_password,
    sudo_password,
    sudo_refusal,
    under_sudo,
)
from deploy.verify.report import CONNECTION, HOST, LOST
from deploy.verify.run import ENV_HOSTS

_BACKEND_PARAMETER = "_testinfra_host"  # as testinfra 10.2 names it

testinfra.backend.BACKENDS[CONNECTION] = f"{__name__}.TransportBackend"


class Connections:
    """
    The connections of one pytest process.

    Attributes:
        lost: Why a host cannot be asked any more, by its name.
    """

    def __init__(self, documents: Iterable[Mapping[str, Any]]) -> None:
        self._hosts = {document["name"]: host_of(document) for document in documents}
        self._transports: dict[str, SshTransport] = {}
        self.lost: dict[str, str] = {}

    def open(self, name: str) -> str | None:
        """
        Connect to the host *name* unless that has been tried; return why it does not answer.
        """
        if name not in self._transports:
            transport = self._transports[name] = SshTransport(self._hosts[name])
            try:
                transport.connect()
            except DeployError as error:
                self.lost[name] = _reason(name, error)
        return self.lost.get(name)

    def run(self, name: str, line: str) -> tuple[int, str, str]:
        """
        Run the shell command *line*; return its exit status and its two outputs.
        """
        if (why := self.open(name)) is not None:
            pytest.fail(why, pytrace=False)
        begin, end = (secrets.token_hex(12) for _ in range(2))
        limit_s = self._hosts[name].ssh.command_timeout
        try:
            # Any other command would read the password as its own input.
            password = self.password(name) if reads_password(line) else None
            content = b"" if password is None else f"{password}\n".encode()
            with ATTEMPTS.attempt(name, content):
                done = self._transports[name].run(
                    ["sh", "-c", f"trap 'printf %s {end}' EXIT; printf %s {begin}; {line}"],
                    timeout_s=limit_s,
                    stdin=content or None,
                    check=False,
                )
                sudo = ["sudo", "-n"] if content else []
                refusal = sudo_refusal(self._hosts[name], sudo, done.returncode, done.stderr)
                if refusal is not None:
                    raise refusal
        except DeployError as error:  # also an output without end
            self.lost[name] = _reason(name, error)
            pytest.fail(self.lost[name], pytrace=False)
        # Without what the login shell of the host prints before the command and at its own end.
        _, _, stdout = done.stdout.rpartition(begin)
        return done.returncode, stdout.partition(end)[0], done.stderr

    def password(self, name: str) -> str | None:
        return sudo_password(self._hosts[name].ssh)

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()


class TransportBackend(BaseBackend):  # type: ignore[misc]
    """
    Runs the commands of assertions over the connection of their host.
    """

    NAME = CONNECTION

    def __init__(self, hostname: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(hostname, *args, **kwargs)
        self._encoding = "utf-8"  # without a command that asks the host

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        line = self.get_command(command, *args)
        status, stdout, stderr = connections().run(self.hostname, line)
        return self.result(status, self.encode(line), stdout, stderr)

    def get_sudo_command(self, command: str, sudo_user: str | None) -> str:
        user = ["-u", sudo_user] if sudo_user else []
        argv = ["sudo", "-n", *user, "/bin/sh", "-c", command]
        return shlex.join(under_sudo(argv, connections().password(self.hostname))[0])


_connections: Connections | None = None


def connections() -> Connections:
    """
    Return the connections of this process, to the hosts of the file that ENV_HOSTS names.
    """
    global _connections
    if _connections is None:
        documents = json.loads(Path(os.environ[ENV_HOSTS]).read_text(encoding="utf-8"))
        _connections = Connections(documents)
    return _connections


class OneWorkerAHost(LoadScopeScheduling):  # type: ignore[misc]
    """
    Gives all assertions of a host to one worker: a second one would log in again.

    xdist's `loadgroup` does not work with pytest 9.2, which keeps the name of a test apart.
    """

    def _split_scope(self, nodeid: str) -> str:
        names = str(self.config.option.hosts).replace(f"{CONNECTION}://", "").split(",")
        _, _, parameters = nodeid.partition(f"[{CONNECTION}://")
        own = [n for n in names if parameters == f"{n}]" or parameters.startswith(f"{n}-")]
        return max(own, key=len, default=nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneWorkerAHost:
    return OneWorkerAHost(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    if (name := _host_of(item)) is not None:
        item.user_properties.append((HOST, name))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    name = _host_of(item)
    if name is not None and (why := connections().open(name)) is not None:
        pytest.fail(why, pytrace=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    name = _host_of(item)
    if name is not None and (why := connections().lost.get(name)) is not None:
        item.user_properties.append((LOST, why))


def pytest_unconfigure() -> None:
    if _connections is not None:
        _connections.close()


def _host_of(item: pytest.Item) -> str | None:
    """
    Return the name of the host that *item* asserts something about; None without one of ours.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    backend = getattr(parameters.get(_BACKEND_PARAMETER), "backend", None)
    return backend.hostname if isinstance(backend, TransportBackend) else None


def _reason(name: str, error: DeployError) -> str:
    what = error.what.removeprefix(f"{name}: ")
    return f"{what} ({error.why})"
