"""
What a command imports: it waits for the modules that it needs, and for no others.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
NEVER = {"torch", "transformers", "pandas", "numpy", "triton", "gevent", "pyinfra", "testinfra"}
_IMPORTED = re.compile(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", re.MULTILINE)


@pytest.fixture
def fleet(tmp_path):
    """
    A fleet of one host that refuses connections.
    """
    path = tmp_path / "fleet.yml"
    known_hosts = tmp_path / "known_hosts"
    known_hosts.touch()
    document = {
        "row": "torch-2.13-cpu",
        "ssh": {"user": "root", "known_hosts": str(known_hosts), "connect_timeout": "1s"},
        "service": {"device": "cpu", "precision": "fp32"},
        "signing": {"identity": "ann", "key": "/nowhere", "allowed_signers": "/nowhere"},
        "hosts": {"n1": {"address": "127.0.0.1", "ssh": {"port": 1}}},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def imported(*argv):
    """
    Return the modules that `inv *argv*` imports, and what it prints on standard output.
    """
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "invoke", *argv],
        cwd=ROOT,
        env=os.environ | {"SLIPWAY_CWD": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return set(_IMPORTED.findall(shown.stderr)), shown.stdout


def packages(modules):
    return {module.partition(".")[0] for module in modules}


def test_status_imports_what_reads_hosts_alone(fleet):
    """
    `inv status` connects to its host without the modules of other tasks.
    """
    modules, shown = imported("status", "--hosts", str(fleet), "--json")
    assert "127.0.0.1:1" in shown, "it ran to the refused connection"
    assert {"paramiko", "deploy.release.observe"} <= modules
    assert not packages(modules) & (NEVER | {"jinja2", "uv"})
    assert not modules & {
        *("deploy.bundle.build", "deploy.release.controller", "deploy.provision.run"),
        *("deploy.lab.lab", "deploy.demo.demo"),
    }


@pytest.mark.parametrize("argv", [["--list"], ["matrix", "--json"]])
def test_a_command_without_hosts_imports_no_ssh(argv):
    """
    The list of tasks and the version matrix wait for no SSH library.
    """
    modules, shown = imported(*argv)
    assert "provision" in shown or "torch-2.13-cpu" in shown
    assert not packages(modules) & (NEVER | {"paramiko", "jinja2"})


def test_an_import_would_be_noticed():
    """
    Negative control: the list of modules holds what a program imports.
    """
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import paramiko"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "paramiko" in packages(_IMPORTED.findall(shown.stderr))
