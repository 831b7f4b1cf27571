"""
`python3 slipway-host.pyz VERB`: reads the document, does the verb, prints the answer.

Exits 0 whenever it answered, also with an error; anything else is a bug of ours.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import Any

from deploy.host.layout import Layout
from deploy.host.rpc import HostError, answer, parse_request, refusal
from deploy.host.system import Clock, Runner, System

# Each verb is "module:function", imported when it is asked for: the tool runs once a second.
VERBS = {
    "status": "status:run",
    "measure": "slots.measure:run",
    "lease.acquire": "verbs:lease_acquire",
    "lease.renew": "verbs:lease_renew",
    "lease.release": "verbs:lease_release",
    "journal.append": "verbs:journal_append",
    "journal.read": "verbs:journal_read",
    "stage.missing": "bundle.staging:missing",
    "stage.commit": "bundle.staging:commit",
    "venv.build": "bundle.venv:build_verb",
    "slot.start": "slots.slot:start",
    "slot.stop": "slots.slot:stop",
    "golden": "slots.golden:run",
    "traffic.set": "slots.traffic:set_weights",
    "traffic.drain": "slots.traffic:drain",
    "good.record": "verbs:good_record",
    "good.rollback": "verbs:good_rollback",
    "retire": "bundle.retention:run",
}


def handle(system: System, verb: str, text: str) -> str:
    """
    Return the line that answers *verb* with the document *text*.
    """
    try:
        request = parse_request(verb, text)
        return answer(_function(verb)(system, request))
    except HostError as error:
        return refusal(error)
    except OSError as error:
        return refusal(_told(error))


def _function(verb: str) -> Any:
    if verb not in VERBS:
        raise HostError(
            "UsageError",
            f"the host tool has no verb {verb!r}",
            f"it has {', '.join(VERBS)}",
            "inv provision puts the host tool of this version there",
        )
    module, _, name = VERBS[verb].partition(":")
    return getattr(importlib.import_module(f"deploy.host.{module}"), name)


def _told(error: OSError) -> HostError:
    where = error.filename or "a file of this host"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(
            "DiskTooSmall",
            f"the disk of {where} is full",
            str(error),
            "make room there, then run it again",
        )
    if isinstance(error, PermissionError):
        return HostError(
            "PreconditionError",
            f"{where} may not be touched",
            f"{error}; the host tool ran as user {os.geteuid()}",
            "let the SSH user of the fleet file be root, or one who may use sudo -n",
        )
    return HostError(
        "CommandFailed",
        f"{where} can't be used",
        str(error),
        "inv provision; if that fails too, df and dmesg on the host",
    )


def main() -> int:
    # The connection may be cut in the middle; what was begun is finished and written down.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    line = handle(System(Layout(), Runner(), Clock()), verb, sys.stdin.read())
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody listens any more; the journal has it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
