"""
Reads the journals of hosts, and keeps the last line that was seen of each.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from deploy.errors import AuditBroken, CommandFailed, DeployError
from deploy.foreign_text import visible
from deploy.host.protocol import JournalRead
from deploy.private_files import private_directory, write_private
from deploy.release.history import Head, History, HostJournal, make_history
from deploy.transport.client import HostClient
from deploy.transport.parallel import on_each
from deploy.wiring.checkout import ROOT

_LINES_MAX = 250_000  # of one host; its own bounds allow fewer
_BYTES_MAX = 64 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def heads_file(fleet: str, root: Path = ROOT) -> Path:
    """
    Return the file of the last lines that were seen of the hosts of *fleet*.
    """
    return root / ".slipway" / "history" / f"{fleet}.json"


def read_history(
    clients: Mapping[str, HostClient], heads: Path
) -> tuple[History, dict[str, DeployError]]:
    """
    Return what the journals of all hosts say that answer, and the errors of the others.

    Args:
        heads: File of the last lines that were seen earlier.

    Raises:
        DeployError: *heads* is damaged.
    """
    seen = _load(heads)
    journals: dict[str, HostJournal] = {}

    def read(host: str) -> None:
        journals[host] = read_journal(clients[host])

    errors = on_each(clients, read)
    return make_history({h: journals[h] for h in clients if h in journals}, seen), errors


def keep_heads(history: History, heads: Path) -> DeployError | None:
    """
    Keep the last line of each journal that is whole in *heads*; that of a broken one stays.

    Returns:
        Why it cannot be kept; what was read is shown all the same.
    """
    try:
        _save(heads, {**_load(heads), **history.heads})
    except DeployError as error:
        return error
    except OSError as error:
        return DeployError(
            f"{heads}: the last lines that were seen cannot be kept",
            why=error.strerror or str(error),
            fix="free space there, or use a checkout that you may write to: the next --verify "
            "would not notice that these lines are gone",
        )
    return None


def read_journal(client: HostClient) -> HostJournal:
    """
    Return the whole journal of a host, page by page.

    Raises:
        CommandFailed: It has no end.
    """
    lines: list[str] = []
    after_seq, size = 0, 0
    while True:
        page = client.call(JournalRead(after_seq), timeout_s=60.0)
        lines += page.lines
        size += sum(map(len, page.lines))
        if page.is_end:
            return HostJournal.of(lines)
        has_gone_on = bool(page.lines) and page.last_seq > after_seq
        if not has_gone_on or len(lines) > _LINES_MAX or size > _BYTES_MAX:
            raise CommandFailed(
                f"{client.host}: its journal has no end",
                why=f"after {len(lines)} lines and {size} bytes it has more",
                fix=f"do not trust that host, or leave it out; on a host of yours: "
                f"du /var/lib/slipway/journal.d on {client.host}",
                host=client.host,
            )
        after_seq = page.last_seq


def audit_error(history: History, heads: Path) -> AuditBroken | None:
    """
    Return the error of a history whose journals are not all whole.
    """
    if not history.broken:
        return None
    places = [
        f"{host}: {found.damage} at line {found.seq}: {found.why}"
        for host, found in history.broken.items()
    ]
    return AuditBroken(
        f"{', '.join(history.broken)}: the journal is not as it was written",
        why="; ".join(places),
        fix="look who had root there: last, and journalctl -u ssh on the host; of a host that was "
        f"installed anew, remove its entry from {heads}",
        host=next(iter(history.broken)) if len(history.broken) == 1 else None,
    )


def _load(path: Path) -> dict[str, Head]:
    try:
        document = json.loads(path.read_bytes())
        heads = {host: Head(seq, sha256) for host, (seq, sha256) in document.items()}
        if not all(
            isinstance(head.seq, int)
            and isinstance(head.sha256, str)
            and _DIGEST.fullmatch(head.sha256)
            for head in heads.values()
        ):
            raise ValueError("an entry is not [number, SHA-256]")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        # Without it nothing could be compared, so it is not begun anew in silence.
        raise DeployError(
            f"{path}: the record of journals that were seen cannot be read",
            why=visible(str(error)),
            fix=f"restore it, or begin anew: mv {path} {path}.old",
        ) from None
    return heads


def _save(path: Path, heads: Mapping[str, Head]) -> None:
    private_directory(path.parent)
    document = {host: [head.seq, head.sha256] for host, head in sorted(heads.items())}
    write_private(path, json.dumps(document, indent=1) + "\n")
