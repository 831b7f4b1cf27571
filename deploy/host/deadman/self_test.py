"""
The test of the host's own way back: its timer must answer, with the present program and units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from deploy.host.files import locked, write_atomic
from deploy.host.journaled import LOCK_TIMEOUT_S
from deploy.host.layout import (
    DEADMAN_BOOT,
    DEADMAN_TIMER,
    DEADMAN_UNITS,
    HOST_PROGRAM,
    UNITS,
    Layout,
)
from deploy.host.protocol import Call, DeadmanTest, DeadmanTested, ErrorKind, HostError
from deploy.host.reserve import with_room
from deploy.host.slots import systemd
from deploy.host.system import System
from deploy.host.trusted_files import read_plain

PATHS = (HOST_PROGRAM, *(f"{UNITS}/{name}" for name in DEADMAN_UNITS))
ANSWER_TIMEOUT_S = 20.0  # the timer comes every 5 s
_POLL_S = 0.1
_FIX = "inv provision installs and tests it"


def mark_of(contents: Mapping[str, bytes]) -> bytes:
    """
    Return the mark of a host whose way back was tested with *contents*, by each of PATHS.
    """
    return mark_of_hashes({path: hashlib.sha256(contents[path]).hexdigest() for path in PATHS})


def mark_of_hashes(hashes: Mapping[str, str]) -> bytes:
    """
    Return the mark by the SHA-256 of each of PATHS, in hexadecimal digits.
    """
    joined = b"".join(bytes.fromhex(hashes[path]) for path in PATHS)
    return hashlib.sha256(joined).hexdigest().encode() + b"\n"


def is_tested(system: System) -> bool:
    """
    Return whether the test has passed with the program and the units that are installed now.
    """
    try:
        return read_plain(system.layout.deadman_tested) == _present_mark(system.layout)
    except OSError:
        return False


def refuse_untested(system: System) -> None:
    """
    Refuse to rely on a way back that was not tested, or whose timer does not run.
    """
    if not is_tested(system):
        raise HostError(
            ErrorKind.PRECONDITION,
            "the host's own way back is not tested",
            f"{system.layout.deadman_tested} is not of the present host program and units",
            _FIX,
        )
    _refuse_off(system)


def run(system: System, _call: Call, request: DeadmanTest) -> DeadmanTested:
    """
    Ask the timer for an answer, and write the mark once it came.
    """
    layout = system.layout
    try:
        mark = _present_mark(layout)
    except OSError as error:
        raise HostError(
            ErrorKind.PRECONDITION, "the host's own way back is not installed", str(error), _FIX
        ) from None
    _refuse_off(system)
    began_s = system.steady_s()
    question = {"asked_at": began_s, "boot_id": system.boot_id()}
    with locked(system, layout.lock, LOCK_TIMEOUT_S):
        layout.deadman_tested.unlink(missing_ok=True)
        layout.deadman_fired.unlink(missing_ok=True)
        data = json.dumps(question).encode()
        with_room(system, lambda: write_atomic(layout.deadman_test, data, 0o600))

    def answered() -> dict[str, Any] | None:
        try:
            document = json.loads(read_plain(layout.deadman_fired))
        except (OSError, ValueError, RecursionError):
            return None
        return document if isinstance(document, dict) else None

    answer = system.poll_until(answered, ANSWER_TIMEOUT_S, _POLL_S)
    layout.deadman_test.unlink(missing_ok=True)
    layout.deadman_fired.unlink(missing_ok=True)
    if answer is None or answer.get("question") != question or answer.get("mark") != mark.decode():
        raise HostError(
            ErrorKind.COMMAND_FAILED,
            "the host's own way back does not work",
            f"{DEADMAN_TIMER} did not run the check in {ANSWER_TIMEOUT_S:.0f} s"
            if answer is None
            else "the check was run by another host program than the installed one",
            f"systemctl status {' '.join(DEADMAN_UNITS)} on the host, then inv provision",
        )
    with locked(system, layout.lock, LOCK_TIMEOUT_S):
        with_room(system, lambda: write_atomic(layout.deadman_tested, mark, 0o644))
    return DeadmanTested(round(system.steady_s() - began_s, 3))


def answer(system: System) -> None:
    """
    Answer a test that waits; the check of the timer does this.
    """
    layout = system.layout
    if not layout.deadman_test.exists():
        return
    with locked(system, layout.lock, LOCK_TIMEOUT_S):
        try:
            question = json.loads(read_plain(layout.deadman_test))
            document = {"question": question, "mark": _present_mark(layout).decode()}
            data = json.dumps(document).encode()
            with_room(system, lambda: write_atomic(layout.deadman_fired, data, 0o600))
            layout.deadman_test.unlink()
        except (OSError, ValueError, RecursionError):
            return  # the test fails, and says so


def _present_mark(layout: Layout) -> bytes:
    paths = (layout.host_program, *layout.deadman_units)
    return mark_of({path: read_plain(file) for path, file in zip(PATHS, paths)})


def _refuse_off(system: System) -> None:
    """
    Refuse a host whose timer does not run, or where something would not start at boot.
    """
    units = systemd.show(system, [DEADMAN_TIMER, DEADMAN_BOOT])
    off = [f"{name} is not enabled" for name, one in units.items() if not one.is_enabled]
    if units[DEADMAN_TIMER].active != "active":
        off.append(f"{DEADMAN_TIMER} is {units[DEADMAN_TIMER].active}")
    if off:
        raise HostError(
            ErrorKind.PRECONDITION, "the host's own way back is switched off", ", ".join(off), _FIX
        )
