"""
`python3 slipway-host.pyz VERB`: reads the request, runs the verb, prints the answer.

Exits 0 whenever it answered, also with an error; any other status is a defect.  The verbs that the
host's own units run (OWN) read no request, and exit with 1 while something is left to do.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.host import protocol
from deploy.host.files import nearest_existing
from deploy.host.protocol import Call, ErrorKind, HostError, Request
from deploy.host.rpc import encode_error, encode_result, parse_request
from deploy.host.system import System

Handler = Callable[[System, Call, Request[Any]], Any]

# "module:function" for each type of request; a module is imported when its verb is called.
HANDLERS: dict[type[Request[Any]], str] = {
    protocol.Status: "status:run",
    protocol.Measure: "slots.measure:run",
    protocol.FactQuery: "facts:run",
    protocol.LeaseAcquire: "lease_verbs:acquire",
    protocol.LeaseRenew: "lease_verbs:renew",
    protocol.LeaseRelease: "lease_verbs:release",
    protocol.StateWrite: "desired:write",
    protocol.StateRead: "desired:read",
    protocol.KeysRead: "api_keys:read",
    protocol.KeysWrite: "api_keys:write",
    protocol.DeadmanArm: "deadman.verbs:arm",
    protocol.DeadmanConfirm: "deadman.verbs:confirm",
    protocol.DeadmanDisarm: "deadman.verbs:disarm",
    protocol.DeadmanTest: "deadman.self_test:run",
    protocol.JournalAppend: "events:append",
    protocol.JournalRead: "events:read",
    protocol.StageMissing: "bundle.staging:missing",
    protocol.StageCommit: "bundle.staging:commit",
    protocol.PythonPlace: "bundle.interpreters:run",
    protocol.VenvBuild: "bundle.venv:run",
    protocol.SlotStart: "slots.slot:start",
    protocol.SlotStop: "slots.slot:stop",
    protocol.Revive: "slots.revive:run",
    protocol.Golden: "slots.golden:run",
    protocol.TrafficSet: "slots.traffic:set_weights",
    protocol.TrafficDrain: "slots.traffic:drain",
    protocol.DoorSet: "slots.door:set_door",
    protocol.PublicAsk: "slots.public_port:ask",
    protocol.Reboot: "reboot:run",
    protocol.CertificateSet: "certificate:install",
    protocol.ChallengeSet: "challenges:answer",
    protocol.GoodRecord: "good:record",
    protocol.GoodRollback: "good:rollback",
    protocol.Retire: "bundle.retention:run",
}


# What the host's own units run: no request, no lease, and the outcome in words.
OWN = {
    "deadman.check": "deadman.way_back:check",
    "deadman.boot": "deadman.way_back:boot",
    "torch.compare": "bundle.torch_check:before_slots",
}


def handle(system: System, verb: str, text: str) -> str:
    """
    Return the answer to *verb* with the document *text*, on one line.
    """
    try:
        request, call = parse_request(verb, text)
        return encode_result(handler_of(type(request))(system, call, request))
    except HostError as error:
        return encode_error(error)
    except OSError as error:
        return encode_error(_host_error(error))


def handler_of(request: type[Request[Any]]) -> Handler:
    """
    Return the function that runs requests of that type.
    """
    handler: Handler = _function(HANDLERS[request])
    return handler


def run_own(system: System, name: str) -> int:
    """
    Run what a unit of the host asks for, print the outcome, and return the exit status.
    """
    try:
        print(_function(OWN[name])(system), flush=True)  # noqa: T201 - read by systemd
        return 0
    except HostError as error:
        problem = error
    except OSError as error:
        problem = _host_error(error)
    print(f"{problem.what}: {problem.why}", flush=True)  # noqa: T201
    return 1


def _function(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"deploy.host.{module}"), name)


def _host_error(error: OSError) -> HostError:
    where = error.filename or "a file of this host"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HostError(
            ErrorKind.DISK_TOO_SMALL,
            f"the disk of {where} is full",
            f"{error}; bytes are free, and no inode is" if _lacks_inodes(error) else str(error),
            "free space there (df -h, df -i), then run it again",
        )
    if isinstance(error, PermissionError):
        return HostError(
            ErrorKind.PRECONDITION,
            f"no permission for {where}",
            f"{error}; the host program ran as user {os.geteuid()}",
            "the SSH user of the fleet file must be root, or a user with sudo -n",
        )
    why = str(error)
    if error.errno in (errno.EROFS, errno.EIO):
        # The remedy that the caller knows for the verb mends no disk.
        why += "; first mend the disk: journalctl -k on the host (its own way back still works)"
    return HostError(
        ErrorKind.COMMAND_FAILED,
        f"{where}: the operating system refused an operation",
        why,
        "inv provision; if that fails too, df and dmesg on the host",
    )


def _lacks_inodes(error: OSError) -> bool:
    """
    Return whether the file system of *error* has space left, and no file can be made there.
    """
    if not isinstance(error.filename, str):
        return False
    statistics = os.statvfs(nearest_existing(Path(error.filename)))
    # Some file systems have as many inodes as they need, and count none.
    return bool(statistics.f_bavail and statistics.f_files and not statistics.f_favail)


def main() -> int:
    # The connection may be cut at any time: a verb that began still ends and is journaled.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o022)
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb in OWN:
        return run_own(System(), verb)
    return answer(verb, sys.stdin.read())


def answer(verb: str, text: str) -> int:
    """
    Run *verb* with the document *text*, print the answer, and return the exit status.
    """
    line = handle(System(), verb, text)
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The caller has gone; the journal has the result.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
