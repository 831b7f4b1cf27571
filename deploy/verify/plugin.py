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
from types import ModuleType
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
from deploy.verify.child import ENV_HOSTS
from deploy.verify.report import CONNECTION, HOST, LOST, LOST_FIX

# Packages of plugins.  xdist's own in a worker is a module without a name.
_PLUGINS = frozenset({"_pytest", "__channelexec__", "deploy", "pytest", "testinfra", "xdist"})
_BACKEND_PARAMETER = "_testinfra_host"  # as testinfra 10.2 names it

testinfra.backend.BACKENDS[CONNECTION] = f"{__name__}.TransportBackend"


class Connections:
    """
    The connections of one pytest process.

    Attributes:
        lost: Why a host cannot be asked any more, and what to do, by its name.
    """

    def __init__(self, documents: Iterable[Mapping[str, Any]]) -> None:
        self._hosts = {document["name"]: host_of(document) for document in documents}
        self._transports: dict[str, SshTransport] = {}
        self.lost: dict[str, tuple[str, str]] = {}

    def open(self, name: str) -> str | None:
        """
        Connect to the host *name* unless that has been tried; return why it does not answer.
        """
        if name not in self._transports:
            transport = self._transports[name] = SshTransport(self._hosts[name])
            try:
                transport.connect()
            except DeployError as error:
                self.lost[name] = _reason(name, error), error.fix
        return self.lost[name][0] if name in self.lost else None

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
            self.lost[name] = _reason(name, error), error.fix
            pytest.fail(self.lost[name][0], pytrace=False)
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


def pytest_sessionstart(session: pytest.Session) -> None:
    refuse_other_plugins(session.config)


def pytest_collection_finish(session: pytest.Session) -> None:
    refuse_other_plugins(session.config)  # a conftest.py below the folder comes with its files


def refuse_other_plugins(config: pytest.Config) -> None:
    """
    Refuse to run beside a plugin that is neither ours nor pytest's: it could skip assertions.

    Raises:
        UsageError: Such a plugin is loaded.
    """
    own = Path(config.getoption("confcutdir")) / "conftest.py"
    for name, plugin in config.pluginmanager.list_name_plugin():
        module = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
        is_known = module.partition(".")[0] in _PLUGINS
        if plugin is not None and not is_known and getattr(plugin, "__file__", "") != str(own):
            raise pytest.UsageError(f"the pytest plugin {name} is not one of inv verify")


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
    if name is not None and name in connections().lost:
        item.user_properties += zip((LOST, LOST_FIX), connections().lost[name], strict=True)


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
