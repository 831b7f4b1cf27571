"""
What apt would do, with the preferences that a plan asks for; nothing is installed.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.host.protocol import AptChange, Simulation
from deploy.host.system import System
from deploy.host.text import one_line

_TIMEOUT_S = 60.0
_OWN = "00slipway-nvidia"
_INSTALL = re.compile(
    r"Inst (?P<package>\S+)(?: \[(?P<before>[^\]]*)\])? \((?P<after>\S+) (?P<archive>.*?)"
    r"(?: \[\w+\])?\)"
)
_REMOVE = re.compile(r"(?:Remv|Purg) (?P<package>\S+)(?: \[(?P<before>[^\]]*)\])?")


def simulate(system: System, packages: tuple[str, ...], pins: str) -> Simulation:
    """
    Return what `apt-get install` of *packages* would do.

    Holds are lifted for the simulation: the plan judges what changes.

    Args:
        pins: Preferences that stand in for slipway's own file of them.

    Raises:
        HostError: apt-get did not end.
    """
    root = Path(system.layout.root)
    with tempfile.TemporaryDirectory(prefix="slipway-apt-", dir=root / "run") as name:
        folder = Path(name)
        for path in (root / "etc/apt/preferences.d").glob("*"):
            if path.name != _OWN:
                (folder / path.name).symlink_to(path)
        (folder / _OWN).write_text(pins)
        command = ["apt-get", "-s", "-q", "-y", "--no-install-recommends", "--allow-downgrades",
                   "--allow-change-held-packages", "--allow-remove-essential",
                   "-o", f"Dir::Etc::PreferencesParts={folder}", "install", *packages]  # fmt: skip
        result = system.run(command, timeout_s=_TIMEOUT_S)
    changes = tuple(_changes(result.stdout))
    if result.returncode == 0:
        return Simulation(changes, None)
    said = [line for line in result.stderr.splitlines() if line.startswith("E: ")]
    unmet = [line for line in result.stdout.splitlines() if " : " in line]
    return Simulation((), one_line("\n".join([*unmet, *said]), last=6)[:1000] or "no reason given")


def _changes(output: str) -> Iterator[AptChange]:
    for line in output.splitlines():
        installed = _INSTALL.match(line)
        removed = _REMOVE.match(line)
        if installed:
            yield AptChange(**installed.groupdict())
        elif removed:
            yield AptChange(**removed.groupdict(), after=None, archive="")
