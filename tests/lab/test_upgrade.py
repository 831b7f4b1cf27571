"""
Hosts that the release before the host program's protocol had a schema provisioned: upgraded in
place, with a release and a rollback across the upgrade.

The earlier release is taken from this repository's history and run as it was.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.lab import lab
from deploy.lab.config import LabConfig
from tests.lab.conftest import bring_up, say

ROOT = Path(__file__).parents[2]
BEFORE = "1c22af696b9e3c0e7d200d43ce31e94103d026eb"
HOSTS = ("n1", "n2")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """
    The checkout of the earlier release.
    """
    known = subprocess.run(["git", "cat-file", "-e", f"{BEFORE}^{{commit}}"], cwd=ROOT, check=False)
    if known.returncode != 0:
        pytest.skip(
            f"the history of this clone does not reach {BEFORE[:12]}: git fetch --unshallow"
        )
    tree = tmp_path_factory.mktemp("before")
    archive = subprocess.run(
        ["git", "archive", BEFORE], cwd=ROOT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    return tree


@pytest.fixture(scope="module")
def fleet(before):
    """
    A lab of its own with two hosts, and its fleet file for both releases; the path of the file.
    """
    default = LabConfig.from_env(os.environ)
    config = LabConfig(
        directory=default.directory.with_name("lab-upgrade"),
        bases=default.bases,
        bridge="slipu",
        prefix="10.77.80",
    )
    bring_up(len(HOSTS), config)
    keys = config.keys
    document = {
        "row": "torch-2.13-cpu",
        "ssh": {"key": str(keys / "id_ed25519"), "known_hosts": str(keys / "known_hosts")},
        "service": {"device": "cpu", "precision": "fp32", "threads": 1},
        "release": {
            "canary": {"duration": "2s", "give_up_after": "20s", "min_requests": 1},
            "lease_ttl": "15s",
        },
        "signing": {
            "identity": "lab@slipway",
            "key": str(keys / "signing_ed25519"),
            "allowed_signers": str(keys / "allowed_signers"),
        },
        "hosts": {name: {"address": config.address(name)} for name in HOSTS},
    }
    path = before / "inventories" / "upgrade.yml"
    path.write_text(yaml.safe_dump(document))
    yield path
    lab.down(progress=say, config=config)


def inv(tree, *args, wanted=0):
    """
    Run a task of the release in *tree* with --json and return its document.
    """
    completed = subprocess.run(
        [sys.executable, "-m", *_program(tree), *args, "--json"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    output = f"exit {completed.returncode}\n{completed.stdout}\n{completed.stderr}"
    assert completed.returncode == wanted, output
    return json.loads(completed.stdout)


def _program(tree):
    return ["deploy.cli"] if (tree / "deploy" / "cli" / "__main__.py").exists() else ["invoke"]


def versions(tree, fleet):
    document = inv(tree, "status", "--hosts", str(fleet))
    return {
        host["host"]: {s["version"]: s["weight_pct"] for s in host["slots"] if s["weight_pct"]}
        for host in document["hosts"]
    }
