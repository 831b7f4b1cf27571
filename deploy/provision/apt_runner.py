"""
Runs changes of packages and their sources on a host: `apt_on_host.sh`, over any transport.

A transaction is a unit of the host's systemd, with a fixed name and its output in files.  It goes
on when the connection is lost, and the next run follows it instead of starting a second one.
"""

import hashlib
import shlex
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from deploy.errors import CommandFailed, DeployError, PreconditionError, hide_passwords
from deploy.foreign_text import quoted, says
from deploy.host import layout
from deploy.provision.apt_packages import AptTransaction
from deploy.provision.apt_sources import AptSources, OsRelease, parse_os_release
from deploy.provision.resource_set import ResourceSet
from deploy.transport.base import Completed
from deploy.transport.client import HostClient

SCRIPT = Path(__file__).with_name("apt_on_host.sh")
WAIT_S = 600  # for other programs that use apt
TRANSACTION_S = 1800  # for one transaction, waits included; it goes on beyond that, unwatched
# For one of a driver: modules are built for each kernel, 510 s each on 2 cores.
DRIVER_TRANSACTION_S = 5400
_ANSWER_S = 60.0
_SOURCES_S = 300.0  # for apt to read new sources
_NEWS = "@apt "
_STILL_HELD = 75  # exit status: another program uses apt

# Places the script from standard input, and runs it.  The directory is open for apt's own user.
_PLACE = (
    'umask 022; work=$1$2; mkdir -p "$work" && chmod 0711 "$work" && '
    'cat >"$work/apt.sh.new" && mv -f "$work/apt.sh.new" "$work/apt.sh" || exit 1; '
    'root=$1; shift 2; exec sh "$work/apt.sh" "$root" "$@"'
)


class Notes(Protocol):
    """
    What an operator is told while a resource changes.
    """

    def wait(self, text: str) -> None:
        """
        Say what the change is at, or waits for.
        """

    def warn(self, about: str, why: str, fix: str) -> None:
        """
        Say what is wrong on the host and did not stop the change.
        """


class _News(NamedTuple):
    kind: str  # status, broken, log, state, ended, gone
    text: str


class AptRunner:
    """
    apt on the host of *client*.

    Args:
        root: Prefix of every path there; tests pass a temporary directory.
    """

    def __init__(self, client: HostClient, notes: Notes, root: str = "") -> None:
        self._client, self._notes, self._root = client, notes, root
        self._told = 0  # lines of the status that were shown

    def change(
        self, transaction: AptTransaction, wait_s: int = WAIT_S, limit_s: int = TRANSACTION_S
    ) -> None:
        """
        Do *transaction*, or follow the one that an earlier run of it left.

        Args:
            wait_s: Longest wait for other programs that use apt.
            limit_s: Longest time that it is followed, waits included.

        Raises:
            CommandFailed: apt refuses it, it has not ended within *limit_s*, or another program
                uses apt for longer than *wait_s*.
            TransportError: The host was lost; the transaction goes on there.
        """
        deadline_s = time.monotonic() + limit_s
        arguments = (digest_of(transaction), *transaction.arguments, f"-w{wait_s}")
        state = self._start(arguments)
        while state == "other":
            # What the operator of that run sees as its failure is no failure of this one.
            self._notes.wait("another transaction of packages runs: waiting for its end")
            self._follow(deadline_s, limit_s)
            state = self._start(arguments)
        if state == "resumed":
            self._notes.wait("going on with the transaction of an earlier run")
        code = self._follow(deadline_s, limit_s)
        self._seen(arguments[0])
        if code is None:
            why = "the transaction ended without a result: killed, or the host rebooted"
            raise self._failed("packages", why, "inv provision completes what it left")
        if code == _STILL_HELD:
            fix = f"wait for its end, or stop it on the host, then: {self._again}"
            raise self._failed("packages", self._last, fix)
        if code != 0:
            raise self._failed("packages", self._last or f"exit status {code}", _READ_LOG)

    def replace_sources(self, sources: AptSources, host: OsRelease | None) -> None:
        """
        Place *sources* once apt has read them, or bring back what they had replaced.

        Args:
            host: None: unknown, the host is asked.

        Raises:
            PreconditionError: A source is for another distribution.
            CommandFailed: apt cannot read the new sources; the old ones are in place.
        """
        if not sources.sources:
            gone = [f"-{path}" for path in sources.obsolete]
            completed = self._run("restore", sources.path, *sources.replaces, *gone)
            if completed.returncode != 0:
                fix = f"write the sources of the host's release, remove {sources.path}, then: "
                raise self._failed(sources.name, completed.stderr, fix + self._again)
            return
        host = host or self.os_release()
        check_fit(self._client.host, sources, host)
        self._notes.wait("apt reads the new sources")
        old = (*sources.replaces, *sources.obsolete)
        completed = self._run("replace", sources.text(host), sources.path, *old)
        if completed.returncode != 0:
            fix = "correct the sources in the fleet file; the host has its old ones"
            raise self._failed(sources.name, completed.stderr or completed.stdout, fix)

    def os_release(self) -> OsRelease:
        """
        Return what a host without Python runs.
        """
        argv = ["cat", "/etc/os-release"]
        completed = self._client.transport.run(argv, timeout_s=_ANSWER_S, check=False)
        return parse_os_release(completed.stdout)

    @property
    def _again(self) -> str:
        return f"inv provision --limit {self._client.host}"

    def _start(self, arguments: tuple[str, ...]) -> str:
        self._told, self._last = 0, ""
        completed = self._run("start", *arguments)
        for news in _news(completed):
            if news.kind == "state":
                return news.text
        fix = f"nothing was changed; systemctl status on the host, then: {self._again}"
        raise self._failed("packages", completed.stderr or completed.stdout, fix)

    def _follow(self, deadline_s: float, limit_s: int) -> int | None:
        """
        Show what the running transaction is at until its end; return its exit status.

        None: it was killed.
        """
        while time.monotonic() < deadline_s:
            for news in _news(self._call(self._placed("follow", str(self._told)))):
                match news.kind:
                    case "status":
                        self._told += 1
                        self._last = news.text
                        self._notes.wait(self._quoted(news.text))
                    case "log" if news.text:
                        self._notes.wait(self._quoted(news.text))
                    case "broken":
                        self._warn(news.text)
                    case "ended":
                        return int(news.text) if news.text.isdigit() else 1
                    case "gone":
                        return None
        raise CommandFailed(
            f"{self._client.host}: the transaction of packages has not ended",
            why=f"it still runs after {limit_s} s, at: {self._quoted(self._last)}",
            fix=f"it goes on on the host; {_READ_LOG}; inv provision follows it",
            host=self._client.host,
        )

    def _seen(self, digest: str) -> None:
        """
        Let the host forget the result, which another run would take for that of its own.
        """
        self._call(self._placed("seen", digest))

    def _placed(self, verb: str, argument: str) -> list[str]:
        return ["sh", f"{self._root}{layout.APT_WORK}/apt.sh", self._root, verb, argument]

    def _warn(self, line: str) -> None:
        path, _, words = line.partition("\t")
        self._notes.warn(
            f"package source {quoted(path)}",
            says(self._client.host, hide_passwords(words)),
            "not a source of slipway: correct or remove it on the host; packages of other sources "
            "are not affected",
        )

    def _quoted(self, words: str) -> str:
        return says(self._client.host, hide_passwords(words))

    def _run(self, verb: str, *arguments: str) -> Completed:
        argv = ["sh", "-c", _PLACE, "sh", self._root, layout.APT_WORK, verb, *arguments]
        return self._call(argv, stdin=SCRIPT.read_bytes(), timeout_s=_SOURCES_S)

    def _call(
        self, argv: list[str], *, stdin: bytes | None = None, timeout_s: float = _ANSWER_S
    ) -> Completed:
        return self._client.transport.run(
            self._client.as_root(argv), timeout_s=timeout_s, stdin=stdin, check=False
        )

    def _failed(self, what: str, words: str, fix: str) -> DeployError:
        host = self._client.host
        return CommandFailed(
            f"{host}: {what}", why=f"{what}: {self._quoted(words)}", fix=fix, host=host
        )


_READ_LOG = f"read {layout.APT_WORK}/log on the host"


def digest_of(transaction: AptTransaction) -> str:
    """
    Return the name of *transaction* on hosts.
    """
    return hashlib.sha256(shlex.join(transaction.arguments).encode()).hexdigest()


def check_bare(resource_set: ResourceSet, client: HostClient, notes: Notes) -> None:
    """
    Check that the sources of *resource_set* are for the distribution of a host without Python.

    Raises:
        PreconditionError: One of them is for another.
    """
    wanted = [one for one in resource_set.placed if isinstance(one, AptSources) and one.sources]
    host = AptRunner(client, notes).os_release() if wanted else None
    for sources in wanted:
        assert host is not None
        check_fit(client.host, sources, host)


def check_fit(name: str, sources: AptSources, host: OsRelease) -> None:
    """
    Check that *sources* are for the distribution of the host called *name*.

    Raises:
        PreconditionError: One of them is for another.
    """
    refusal = sources.unfit(host)
    if refusal is not None:
        raise PreconditionError(
            f"{name}: not provisioned", why=refusal.why, fix=refusal.fix, host=name
        )


def _news(completed: Completed) -> list[_News]:
    """
    Return the script's lines in the output; the login shell of the host may print around them.
    """
    lines = completed.stdout.split("\n")
    parts = (line.removeprefix(_NEWS).partition(" ") for line in lines if line.startswith(_NEWS))
    return [_News(kind, text) for kind, _, text in parts]
