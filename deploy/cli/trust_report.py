"""
What `inv trust` shows.
"""

from collections.abc import Sequence

from deploy.foreign_text import visible
from deploy.transport.host_keys import ShownKeys
from deploy.wiring.trust import TrustReport


def keys_text(shown: Sequence[ShownKeys]) -> str:
    """
    Return the keys that servers have shown, one a line: host, name, fingerprint.
    """
    return "\n".join(
        visible(f"{one.host}  {one.name}  {fingerprint}")
        for one in shown
        for fingerprint in one.fingerprints
    )


def trust_text(report: TrustReport) -> str:
    """
    Return the sum of a run of `inv trust`.
    """
    keys = sum(len(one.keys) for one in report.recorded)
    files = ", ".join(sorted({str(one.path) for one in report.recorded}))
    where = f" in {files}" if files else ""
    return (
        f"{keys} keys recorded{where}; {len(report.known)} hosts were known, "
        f"{len(report.failed)} not recorded"
    )
