"""
HAProxy's runtime socket: commands, and parsers of the answers.

Source: HAProxy 2.6 management guide, "show stat", "show servers state", "set server",
"set weight"; tests compare each statement here with a real HAProxy.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from deploy.host.layout import BACKEND, SLOTS, TIMELY_BACKEND
from deploy.host.protocol import ErrorKind, HostError
from deploy.host.system import System
from deploy.host.text import lines_of, one_line

READY, DRAIN, MAINT = "ready", "drain", "maint"
UP, LATE = "UP", "LATE"
_FORCED_MAINT = 0x01 | 0x02 | 0x20 | 0x40  # by command, inherited, by resolution, by address
_FORCED_DRAIN = 0x08 | 0x10  # by command, inherited
_MAINT_COMMAND, _DRAIN_COMMAND = 0x01, 0x08
_STOPPED, _RUNNING = "0", "2"  # srv_op_state


class Server(NamedTuple):
    """
    One server of the backend, which is one slot.

    Attributes:
        admin: Administrative state: ready, drain or maint.
        status: HAProxy's status: UP, DOWN, "UP 1/2", MAINT, DRAIN; or LATE where it is UP and does
            not answer its checks in time: it gets no requests while the other slot can take them.
        own_weight: Configured weight, 0 to 256, also in drain and in maint.
        sessions: Requests in flight or queued for it.
        counters: Cumulative since HAProxy started, by field of `ProxyCounters`.
    """

    name: str
    admin: str
    status: str
    own_weight: int
    sessions: int
    counters: dict[str, int]

    @property
    def weight(self) -> int:
        """
        Return the effective weight for new requests: 0 in drain and in maint.
        """
        return self.own_weight if self.admin == READY else 0

    @property
    def is_up(self) -> bool:
        """
        Return whether the server's checks passed, in time.

        A server that leaves maint is "UP 1/2" until its first check.
        """
        return self.status == UP


_COUNTERS = {
    "attempts": "stot",
    "answers_2xx": "hrsp_2xx",
    "answers_4xx": "hrsp_4xx",
    "answers_5xx": "hrsp_5xx",
    "connection_errors": "econ",
    "response_errors": "eresp",
    "cut_answers": "srv_abrt",
    "retries": "wretr",
    "redispatches": "wredis",
}


def parse_stat(text: str) -> list[dict[str, str]]:
    """
    Return the rows of `show stat`, each by column.

    `last_chk` has text of a slot: the reason phrase with which it refused its check.
    """
    return list(csv.DictReader(lines_of(text.lstrip("# "))))


def servers_of(rows: Iterable[dict[str, str]], backend: str) -> dict[str, dict[str, str]]:
    """
    Return those of *rows* that are servers of *backend*, by name.
    """
    kinds = {"FRONTEND", "BACKEND"}
    return {
        row["svname"]: row
        for row in rows
        if row.get("pxname") == backend and row["svname"] not in kinds
    }


def parse_servers_state(text: str, backend: str) -> dict[str, dict[str, str]]:
    """
    Return the rows of the servers of *backend* in `show servers state`, by name, each by column.

    Raises:
        ValueError: The answer is not of version 1 of its format.
    """
    lines = lines_of(text.strip())
    if len(lines) < 2 or lines[0].strip() != "1" or not lines[1].startswith("# "):
        raise ValueError(f"not a server state of version 1: {one_line(text)[:200]!r}")
    columns = lines[1][2:].split()
    rows = [dict(zip(columns, line.split())) for line in lines[2:]]
    return {row["srv_name"]: row for row in rows if row.get("be_name") == backend}


def merge(stat: Mapping[str, str], state: Mapping[str, str]) -> Server:
    """
    Return the server of the two rows.

    `show stat` keeps the weight in drain and in maint, and its status is DOWN for a draining server
    that fails its checks: the administrative state is only in `show servers state`.
    """
    return Server(
        name=stat["svname"],
        admin=admin_of(state),
        status=stat["status"],
        own_weight=int(state["srv_uweight"]),
        sessions=int(stat["scur"] or 0) + int(stat["qcur"] or 0),
        counters={ours: int(stat[theirs] or 0) for ours, theirs in _COUNTERS.items()},
    )


def admin_of(state: Mapping[str, str]) -> str:
    """
    Return the administrative state in a row of `show servers state`.
    """
    flags = int(state["srv_admin_state"])
    return MAINT if flags & _FORCED_MAINT else DRAIN if flags & _FORCED_DRAIN else READY


def state_without(text: str, slot: str, serving: str | None, backend: str = BACKEND) -> str:
    """
    Return the server state *text*, changed so that *slot* is in maint and *serving* has all weight.

    For HAProxy's next start, which reads it.

    Raises:
        ValueError: As for `parse_servers_state`.
    """
    rows = parse_servers_state(text, backend)
    if slot in rows:
        flags = int(rows[slot]["srv_admin_state"]) & ~_DRAIN_COMMAND | _MAINT_COMMAND
        rows[slot] |= {"srv_admin_state": str(flags), "srv_uweight": "0", "srv_op_state": _STOPPED}
    if serving in rows:
        flags = int(rows[serving]["srv_admin_state"]) & ~(_DRAIN_COMMAND | _MAINT_COMMAND)
        # A server that was in maint is "stopped"; its first check tells whether it is UP.
        rows[serving] |= {"srv_admin_state": str(flags), "srv_uweight": "100"}
        rows[serving] |= {"srv_op_state": _RUNNING}
    head = lines_of(text.strip())[:2]
    return "\n".join([*head, *(" ".join(row.values()) for row in rows.values())]) + "\n\n"


class Haproxy:
    """
    The running HAProxy, through its runtime socket.
    """

    def __init__(self, system: System) -> None:
        self._system = system

    def servers(self, backend: str = BACKEND) -> dict[str, Server]:
        """
        Return the servers of *backend* by name.

        Raises:
            HostError: HAProxy does not answer, or lacks the backend or one of its slots.
        """
        try:
            rows = parse_stat(self.ask("show stat"))
            stats = servers_of(rows, backend)
            states = parse_servers_state(self.ask("show servers state"), backend)
            servers = {name: merge(row, states[name]) for name, row in stats.items()}
            # A configuration of an earlier version has no such backend.
            for name, row in servers_of(rows, TIMELY_BACKEND).items():
                if servers[name].is_up and row["status"].startswith("DOWN"):
                    servers[name] = servers[name]._replace(status=LATE)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise _unexpected(f"its answer cannot be read: {error!r}") from None
        if not servers:
            raise _unexpected(f"it has no backend named {backend}")
        if backend == BACKEND and (lacking := [slot for slot in SLOTS if slot not in servers]):
            raise _unexpected(f"its backend {backend} has no server {' and no '.join(lacking)}")
        return servers

    def states(self, backend: str) -> dict[str, str]:
        """
        Return the administrative states of the servers of *backend*, by name; empty: it has none.

        Raises:
            HostError: HAProxy does not answer.
        """
        try:
            rows = parse_servers_state(self.ask("show servers state"), backend)
            return {name: admin_of(row) for name, row in rows.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise _unexpected(f"its answer cannot be read: {error!r}") from None

    def set_admin(self, name: str, admin: str, backend: str = BACKEND) -> None:
        """
        Set the administrative state of *name*: ready, drain or maint.
        """
        self._tell(f"set server {backend}/{name} state {admin}")

    def set_weight(self, name: str, weight: int, backend: str = BACKEND) -> None:
        """
        Set the absolute weight of *name*, 0 to 256.
        """
        self._tell(f"set weight {backend}/{name} {weight}")

    def state(self) -> str:
        """
        Return the content of the state file that HAProxy reads at its start.
        """
        return self.ask("show servers state")

    def ask(self, command: str) -> str:
        """
        Return HAProxy's answer to *command*.
        """
        try:
            return self._system.haproxy(command)
        except OSError as error:
            path = self._system.layout.haproxy_socket
            raise _unexpected(f"{path}: {error.strerror or error}") from None

    def _tell(self, command: str) -> None:
        # The answer is an empty line after success, and a sentence after a refusal.
        if refusal := self.ask(command).strip():
            raise HostError(
                ErrorKind.COMMAND_FAILED,
                f"HAProxy refused: {command}",
                one_line(refusal)[:300],
                "inv provision installs the HAProxy configuration of this version",
            )


def _unexpected(why: str) -> HostError:
    return HostError(
        ErrorKind.COMMAND_FAILED,
        "HAProxy's runtime socket does not answer as expected",
        why,
        "systemctl status haproxy on the host, then inv provision",
    )
