"""
Records the host keys of a fleet, once an operator or a list of fingerprints has confirmed them.
"""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from deploy.errors import DeployError, HostKeyMismatch, TransportError
from deploy.foreign_text import visible
from deploy.inventory.schema import Fleet, Host
from deploy.transport.host_keys import ShownKeys, first_unknown, record

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class TrustReport:
    """
    Attributes:
        known: Hosts whose key was recorded before.
        recorded: Keys that this run has recorded.
        failed: Why a host has no recorded key.
    """

    known: tuple[str, ...]
    recorded: tuple[ShownKeys, ...]
    failed: dict[str, DeployError]

    @property
    def error(self) -> DeployError | None:
        """
        The error to exit with; None: each host has a recorded key.
        """
        errors = list(self.failed.values())
        if len(errors) < 2:
            return next(iter(errors), None)
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else TransportError
        return kind(
            f"{', '.join(self.failed)}: not recorded",
            why="; ".join(f"{error.what}: {error.why}" for error in errors),
            fix="; ".join(dict.fromkeys(error.fix for error in errors)),
        )

    def as_json(self) -> dict[str, Any]:
        """
        Return the document of `inv trust --json`.
        """
        return {
            "known": list(self.known),
            "recorded": [
                {
                    "host": one.host,
                    "name": one.name,
                    "known_hosts": str(one.path),
                    "fingerprints": list(one.fingerprints),
                }
                for one in self.recorded
            ],
            "failed": [
                {"host": name, "what": error.what, "why": error.why, "fix": error.fix}
                for name, error in self.failed.items()
            ],
        }


def trust(
    fleet: Fleet, *, fingerprints: Collection[str], ask: Callable[[Sequence[ShownKeys]], None]
) -> TrustReport:
    """
    Record the keys of each server on the way to the hosts of *fleet* that has none recorded.

    Args:
        fingerprints: Only these keys are recorded; empty: all that *ask* lets pass.
        ask: Shows keys to the operator; raises where the answer is not yes.

    Raises:
        UsageError: Not confirmed, or a file cannot be written.
    """
    left, failed = list(fleet.hosts), dict[str, DeployError]()
    known: list[str] = []
    recorded: list[ShownKeys] = []
    while left:  # a jump host is recorded before the server behind it is asked
        unknown: dict[tuple[object, str], ShownKeys] = {}
        waiting: list[Host] = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(_look, left))
        for host, answer in zip(left, answers, strict=True):
            if answer is None:
                known.append(host.name)
            elif isinstance(answer, DeployError):
                failed[host.name] = answer
            elif (one := _only(answer, fingerprints)) is None:
                failed[host.name] = _other_fingerprint(answer)
            else:
                unknown.setdefault((one.path, one.name), one)
                waiting.append(host)
        if unknown:
            ask(tuple(unknown.values()))
            record(unknown.values())
            recorded += unknown.values()
        left = waiting
    new = {one.host for one in recorded}
    return TrustReport(tuple(name for name in known if name not in new), tuple(recorded), failed)


def _look(host: Host) -> ShownKeys | DeployError | None:
    try:
        return first_unknown(host)
    except DeployError as error:
        return error


def _only(shown: ShownKeys, fingerprints: Collection[str]) -> ShownKeys | None:
    if not fingerprints:
        return shown
    pairs = zip(shown.keys, shown.fingerprints, strict=True)
    keys = tuple(key for key, one in pairs if one in fingerprints)
    return ShownKeys(shown.host, shown.name, shown.path, keys) if keys else None


def _other_fingerprint(shown: ShownKeys) -> HostKeyMismatch:
    return HostKeyMismatch(
        f"{shown.host}: no key with one of the fingerprints",
        why=f"{visible(shown.name)} shows {', '.join(shown.fingerprints)}",
        fix="on the host's console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        host=shown.host,
    )
