"""
The verb `challenge.set`: what HAProxy answers to the HTTP-01 challenges of an ACME server.

The answers are in a map of the running HAProxy alone.  A renewal that was cut off leaves some that
nobody asks for again; they go with HAProxy's next start, or when there are many.
"""

from __future__ import annotations

from deploy.host.files import locked
from deploy.host.journaled import LOCK_TIMEOUT_S, append_event
from deploy.host.protocol import Call, ChallengeSet, ChallengesShown, ErrorKind, HostError
from deploy.host.system import System
from deploy.host.text import one_line

PATH = "/.well-known/acme-challenge/"  # RFC 8555, section 8.3
SHOWN_MAX = 200  # answers at once; beyond it those of earlier calls are dropped


def answer(system: System, call: Call, request: ChallengeSet) -> ChallengesShown:
    """
    Change the answers of the running HAProxy.

    Raises:
        HostError: HAProxy does not run, or its configuration answers no challenges.
    """
    if len(request.show) > SHOWN_MAX:
        raise HostError(
            ErrorKind.USAGE,
            f"{request.VERB}: too many challenges",
            f"{len(request.show)}; {SHOWN_MAX} are answered at once",
            "ask for certificates with fewer names",
        )
    map_ = _Map(system)
    with locked(system, system.layout.certificate_lock, LOCK_TIMEOUT_S):
        shown = map_.keys()
        with locked(system, system.layout.lock, LOCK_TIMEOUT_S):
            data = {"shown": len(request.show), "hidden": len(request.hide)}
            append_event(system, call, request.VERB, data)
        if len(shown) + len(request.show) > SHOWN_MAX:
            map_.clear()
            shown = set()
        for token in request.hide:
            if PATH + token in shown:
                map_.remove(PATH + token)
        for token, text in request.show.items():
            if PATH + token in shown:
                map_.remove(PATH + token)
            map_.add(PATH + token, text)
        wanted = {PATH + token for token in request.show}
        shown = map_.keys()
    if not wanted <= shown:
        raise _refused("it does not keep the answers")
    return ChallengesShown(answered=len(shown))


class _Map:
    """
    The map of answers in the running HAProxy.

    Source: HAProxy 2.6 management guide, "show map", "add map", "del map", "clear map".
    """

    def __init__(self, system: System) -> None:
        self._system, self._path = system, system.layout.acme_map

    def keys(self) -> set[str]:
        """
        Return the paths that are answered.

        Raises:
            HostError: HAProxy does not answer, or has no such map.
        """
        text = self._ask(f"show map {self._path}")
        lines = [line.split() for line in text.splitlines() if line.strip()]
        # A line is "ADDRESS KEY VALUE"; anything else is an error message.
        if any(len(line) != 3 or not line[0].startswith("0x") for line in lines):
            raise _unprepared(text)
        return {line[1] for line in lines}

    def add(self, key: str, value: str) -> None:
        self._change(f"add map {self._path} {key} {value}")

    def remove(self, key: str) -> None:
        self._change(f"del map {self._path} {key}")

    def clear(self) -> None:
        self._change(f"clear map {self._path}")

    def _change(self, command: str) -> None:
        answer = self._ask(command)
        if answer.strip():
            raise _refused(one_line(answer)[:300])

    def _ask(self, command: str) -> str:
        try:
            return self._system.haproxy(command)
        except OSError as error:
            raise _refused(f"its runtime socket does not answer: {error}") from None


def _unprepared(answer: str) -> HostError:
    return HostError(
        ErrorKind.PRECONDITION,
        "HAProxy answers no challenges of an ACME server here",
        f"its configuration has no map for them: {one_line(answer)[:200]}",
        "inv provision with service.tls.kind acme",
    )


def _refused(why: str) -> HostError:
    return HostError(
        ErrorKind.COMMAND_FAILED,
        "HAProxy does not answer the challenges of the ACME server",
        why,
        "systemctl status haproxy on the host, then inv provision",
    )
