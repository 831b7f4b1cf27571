"""
Labs that belong to one test module each, and what their fleet files have in common.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.lab import lab
from deploy.lab.config import LabConfig
from deploy.lab.suites import DEFAULT_SUITE
from deploy.wiring.checkout import ROOT
from tests.lab.conftest import bring_up, say

# Bridge and network of each: two modules that run at once do not meet.
_LABS = {
    "driver": ("slpdrv", "10.77.65"),
    "provision": ("slipp", "10.77.79"),
    "upgrade": ("slipu", "10.77.80"),
    "hostile": ("sliph", "10.77.81"),
    "deadman": ("slipd", "10.77.82"),
    "apt": ("slipa", "10.77.83"),
    "real": ("slipm", "10.77.84"),
    "canaries": ("slipg", "10.77.85"),
    "door": ("slipo", "10.77.86"),
    "reboots": ("slipr", "10.77.87"),
    "tampering": ("sliptm", "10.77.76"),
    "ways-in": ("slpt1", "10.77.120"),
    "data-disk": ("slpdat", "10.77.66"),
    "trees": ("slpt2", "10.77.121"),
}


def lab_config(name: str, suite: str = DEFAULT_SUITE) -> LabConfig:
    """
    Return the config of the lab *name*; it shares the base trees of the default lab.
    """
    default = LabConfig.from_env(os.environ)
    bridge, prefix = _LABS[name]
    return LabConfig(
        directory=default.directory.with_name(f"lab-{name}"),
        bases=default.bases,
        bridge=bridge,
        prefix=prefix,
        suite=suite,
    )


@contextlib.contextmanager
def booted_lab(name: str, hosts: int, suite: str = DEFAULT_SUITE) -> Iterator[LabConfig]:
    """
    Boot *hosts* new hosts of the lab *name* and yield its config; afterwards the lab is down.
    """
    config = lab_config(name, suite)
    lab.down(progress=say, config=config)
    bring_up(hosts, config)
    try:
        yield config
    finally:
        lab.down(progress=say, config=config)


def fleet_document(
    config: LabConfig, hosts: Sequence[str], **sections: dict[str, Any]
) -> dict[str, Any]:
    """
    Return a fleet file of *hosts* that serve on one thread of a CPU.

    Args:
        sections: Keys that a section has besides, such as ``service={"memory_max": "2GiB"}``.
    """
    keys = config.keys
    document: dict[str, Any] = {
        "row": "torch-2.13-cpu",
        "ssh": {"key": str(keys / "id_ed25519"), "known_hosts": str(keys / "known_hosts")},
        "service": {"device": "cpu", "precision": "fp32", "threads": 1},
        "signing": {
            "identity": "lab@slipway",
            "key": str(keys / "signing_ed25519"),
            "allowed_signers": str(keys / "allowed_signers"),
        },
        "hosts": {name: {"address": config.address(name)} for name in hosts},
    }
    for section, added in sections.items():
        document[section] = document.get(section, {}) | added
    return document


def write_fleet_file(path: Path, document: dict[str, Any]) -> Path:
    """
    Write *document* to *path*, whose folder is made, and return the path.
    """
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    return path


def inv(fleet: Path, *args: str, wanted: Sequence[int] = (0,)) -> tuple[dict[str, Any], float]:
    """
    Run a task with --json, which has to end with one of the exit codes *wanted*.

    Returns:
        (its document, its duration in seconds).
    """
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *args, "--hosts", str(fleet), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    output = f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.returncode in wanted, output
    assert "Traceback" not in output
    return json.loads(done.stdout), time.monotonic() - began_s
